"""Internalisation measured: what the student's layers carry of the teacher's, on held-out speech."""
