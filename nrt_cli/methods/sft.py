"""SFT: cross-entropy on y*, and on a reference trace before it where the data has one and the run reads it (Eq. 1)."""

from nrt_cli.methods.method import Method


class Sft(Method):
    """No traces are sampled, so there is no group: every token after x has the weight 1."""

    name = "sft"
    title = "SFT"
    summary = "cross-entropy on the reference answer; with data.traces, on reference traces too"
    place = 0
    samples = False
    policy_gradient = False
