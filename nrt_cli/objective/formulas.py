"""The built-in schemes as the paper writes them (Tables 1 and 2), in Unicode and in LaTeX: what tables of them show.

`schemes.py` is what is computed; tests evaluate these formulas and compare.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Formula:
    """One expression, `text` for people's eyes and `math` for LaTeX."""

    text: str
    math: str


@dataclass(frozen=True)
class SchemeFormulas:
    """A row of Table 1: f(c), the trace reward R and the token signal (df/dc_i) c_i; of Table 2 also the weight."""

    name: str
    aggregation: Formula
    reward: Formula
    signal: Formula
    weight: Formula | None = None


_JOINT = Formula("π(y*|x,z)", r"\pi_\theta(y^*|x,z)")

FORMULAS = {
    "logp": SchemeFormulas(
        "Sequence Log-Prob (logP)",
        Formula("Σⱼ log cⱼ", r"\sum_{j=1}^T \log c_j"),
        Formula("log π(y*|x,z)", r"\log \pi_\theta(y^*|x,z)"),
        Formula("1", "1"),
    ),
    "p": SchemeFormulas("Sequence Probability (P)", Formula("Πⱼ cⱼ", r"\prod_{j=1}^T c_j"), _JOINT, _JOINT),
    "gm": SchemeFormulas(
        "Geometric Mean (GM)",
        Formula("(Πⱼ cⱼ)^(1/T)", r"\left(\prod_{j=1}^T c_j\right)^{1/T}"),
        Formula("π(y*|x,z)^(1/T)", r"\pi_\theta(y^*|x,z)^{1/T}"),
        Formula("1/T · π(y*|x,z)^(1/T)", r"\frac{1}{T}\,\pi_\theta(y^*|x,z)^{1/T}"),
    ),
    "am": SchemeFormulas(
        "Arithmetic Mean (AM)",
        Formula("1/T · Σⱼ cⱼ", r"\frac{1}{T}\sum_{j=1}^T c_j"),
        Formula("1/T · Σⱼ cⱼ", r"\frac{1}{T}\sum_{j=1}^T c_j"),
        Formula("1/T · cᵢ", r"\frac{1}{T}\,c_i"),
    ),
    "ws-inv-p": SchemeFormulas(
        "Inverse-Probability (1/p)",
        Formula("Σⱼ wⱼ cⱼ", r"\sum_{j=1}^T w_j c_j"),
        Formula("Σⱼ cⱼ / cⱼ,base", r"\sum_{j=1}^T \frac{c_j}{c_{j,\mathrm{base}}}"),
        Formula("cᵢ / cᵢ,base", r"\frac{c_i}{c_{i,\mathrm{base}}}"),
        Formula("1 / cᵢ,base", r"\frac{1}{c_{i,\mathrm{base}}}"),
    ),
    "ws-neg-log-p": SchemeFormulas(
        "Log-Probability (-log p)",
        Formula("Σⱼ wⱼ cⱼ", r"\sum_{j=1}^T w_j c_j"),
        Formula("-Σⱼ cⱼ log cⱼ,base", r"-\sum_{j=1}^T c_j \log c_{j,\mathrm{base}}"),
        Formula("-cᵢ log cᵢ,base", r"-c_i \log c_{i,\mathrm{base}}"),
        Formula("-log cᵢ,base", r"-\log c_{i,\mathrm{base}}"),
    ),
}
"""By scheme, in the order of Table 1."""

WEIGHTED = SchemeFormulas(
    "Weighted Sum (WS)",
    FORMULAS["ws-inv-p"].aggregation,
    FORMULAS["ws-inv-p"].aggregation,
    Formula("wᵢ cᵢ", "w_i c_i"),
)
"""Table 1's last row, of which Table 2 has the two weightings."""
