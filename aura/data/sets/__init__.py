"""Public test sets in their published formats -> utterances for `write_manifest`."""
