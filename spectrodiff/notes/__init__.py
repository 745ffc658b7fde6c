"""MIDI files to notes, notes to tokens, and back."""
