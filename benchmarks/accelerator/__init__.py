"""What an accelerator gives: the student's step, scoring, BALD and each kernel, on random weights of real shapes.

Runs where only torch, transformers and peft are installed. `__main__.py` is the command line.
"""
