"""What transformers calls the key-value cache among its arguments and outputs: `cache` from 5.24 on, `past_key_values` before."""

from __future__ import annotations

import inspect

from transformers.masking_utils import create_masks_for_generate

CACHE_KEY = "cache" if "cache" in inspect.signature(create_masks_for_generate).parameters else "past_key_values"
