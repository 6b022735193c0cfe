"""Wan2.2-S2V: a picture that speaks, sings or moves to a sound."""
