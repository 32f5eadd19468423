"""What a red run says to do next.

``files.py`` finds results, ``read.py`` (pure) reads them and believes nothing unseen, ``causes.py`` (pure) groups what
failed by its cause over kernels, ``words.py`` (pure) says it, ``rerun.py`` (pure) makes a pytest command of it;
``verifier.py`` (pure) finds the verifier's objection in what a failing test said.
"""
