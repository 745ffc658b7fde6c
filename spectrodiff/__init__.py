"""MIDI in, music out: spectrogram diffusion in JAX."""
