"""Any speech corpus -> instruction data: transcripts from an ASR, answers from an LLM, and a filter between them."""
