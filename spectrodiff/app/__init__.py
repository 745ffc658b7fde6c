"""A local web page on which a MIDI file is heard while it is being rendered; needs gradio."""
