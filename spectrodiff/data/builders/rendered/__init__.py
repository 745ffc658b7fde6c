"""The packaged corpus: music from free packages, varied and played by a SoundFont, with exact notes."""
