"""Text -> speech -> manifest, with the text-to-speech engines that exist as packages."""
