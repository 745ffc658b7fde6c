"""Pieces and stems whose labels are known not to fit their audio, and why, according to those who found them."""

# https://github.com/marl/GuitarSet/issues/5; the corpus's homepage warns of both.
GUITARSET = {
    "04_BN3-154-E_comp": "its labels are 0.41 s late",
    "04_Jazz1-200-B_comp": "its labels are 0.31 s late",
}

_NO_AUDIO = "its notes are not audible"
_PITCH = "its notes have other pitches than its audio"
_SHORT = "its notes are shorter than its audio"
_TONE = "its audio is one long tone"
# By song and stem. All but the last two: slakh_dataset/splits/problem_stems.json of github.com/greenbech/
# slakh-pytorch-dataset (commit 3ffb606), the list of https://github.com/ethman/slakh-utils/issues/17.
# Track01500: https://github.com/ethman/slakh-utils/issues/21.
SLAKH = {
    ("Track00262", "S01"): "its notes are not those of its audio",
    ("Track00357", "S03"): _NO_AUDIO,
    ("Track00377", "S07"): _NO_AUDIO,
    ("Track00385", "S00"): _NO_AUDIO,
    ("Track00398", "S00"): _NO_AUDIO,
    ("Track00400", "S00"): _NO_AUDIO,
    ("Track00404", "S03"): _SHORT,
    ("Track00496", "S01"): _PITCH,
    ("Track00629", "S01"): _NO_AUDIO,
    ("Track00633", "S01"): _NO_AUDIO,
    ("Track00737", "S01"): _SHORT,
    ("Track00749", "S01"): _NO_AUDIO,
    ("Track00893", "S01"): _SHORT,
    ("Track01629", "S00"): _NO_AUDIO,
    ("Track01918", "S10"): _PITCH,
    ("Track01931", "S01"): _PITCH,
    ("Track01937", "S03"): _PITCH,
    ("Track01500", "S12"): _TONE,
    ("Track01500", "S13"): _TONE,
}
