"""`aura serve`: an OpenAI-compatible server, a realtime socket and a page with a microphone."""
