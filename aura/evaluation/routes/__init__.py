"""Ways from speech to an answer, behind one interface: aura, bridge, cascade, text and any endpoint."""
