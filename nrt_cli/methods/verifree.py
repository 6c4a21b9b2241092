"""VeriFree as published (arXiv 2505.21493v1, Eq. 7; sail-sg/VeriFree at 718b363: `verifree.py`, `run.sh`)."""

from typing import ClassVar

from nrt_cli.methods.method import Formulas
from nrt_cli.methods.table1 import JOINT, SequenceProbability


class VeriFree(SequenceProbability):
    """R = prod_j c_j: RLOO on the trace, and y* by cross-entropy that is weighted with R itself."""

    name = "verifree"
    title = "VeriFree (published)"
    summary = "the answer's probability, leave-one-out on the trace, and the answer weighted with it (arXiv 2505.21493)"
    aliases = ("verifree (published)",)
    place = 10
    paper = False
    defaults: ClassVar = {
        "objective": {
            **{"token_signal": "derived", "balance": "off", "baseline": "none", "advantage": "rloo"},
            "weights": {"format": 0.0},
        }
    }
    formulas = Formulas("VeriFree (published)", JOINT, JOINT, JOINT, place=101)
