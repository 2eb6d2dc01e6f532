"""Are the kernels right on the device at hand? Asked on the user's machine, once, and remembered.

    target.py   the device under test: what it is, the functions that run on it
    checks/     what is run, family by family
    trial.py    runs it twice, poisoned, between guard bands, and compares; worker.py does so in a process of its own
    judge.py    starts that process, and makes a verdict of what it left
    store.py    the verdicts, in the user's cache
    gate.py     what "auto" asks, and what the ranks of a run agree on
    command.py  `python -m worldr1_kernels verify`

docs/kernels.md says what it means for a user.
"""

from worldr1_kernels.verify.gate import agree
from worldr1_kernels.verify.judge import verify
from worldr1_kernels.verify.store import Verdict

__all__ = ["Verdict", "agree", "verify"]
