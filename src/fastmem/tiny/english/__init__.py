"""An invented world in plain English: names, facts, texts about them, questions, and what is measured.

It will take the place of `tiny/world.py`; the embedded model was still trained on that one. Everything is derived from
a seed and the files of this folder, without network or torch.
"""
