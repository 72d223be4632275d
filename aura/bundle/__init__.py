"""A recipe with all it needs, in a folder of archives: training where there is no network."""
