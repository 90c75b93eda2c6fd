"""The convergence bound of Liu et al. 2024, Theorem 1 (eq. (40)), as printed and corrected.

Both forms bound a round average of squared gradients by

    (F_0 - F*) / G  +  A_1  +  A_2 S,        S = sum of the pruning ratios over rounds and devices,

so both ask the radio for the same thing: the least sum of pruning ratios. They differ in A_1, A_2 and in
what stands on the left.

`paper`: left side = average of (eta_v tau_v / 8) sum_k |grad_v F_k|^2 + (eta_u tau_u / 2) |grad_u F|^2. It is
false as stated: its proof replaces the average gradient of the devices that kept a weight by the average
over all (heterogeneity is lost), and its v-term misses a factor 1/K where F is the mean of the F_k.

`corrected`: left side = average of left_coefficient * |grad_u F|^2 (the global part alone). It keeps the
heterogeneity |grad F_k - grad F|^2 <= delta^2 + varphi^2 |grad F|^2, and counts every coordinate once, where
the printed form bounds each coordinate by the whole norm and multiplies by N_u or N_u^2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from radio.arrays import choice, count, non_negative, positive

Form = Literal["paper", "corrected"]


@dataclass(frozen=True)
class BoundConstants:
    """Constants of Theorem 1.

    Attributes:
        initial_gap: F_0 - F*.
        num_rounds: G.
        num_devices: K.
        num_global_weights: N_u (only the printed form depends on it).
        step_size_global, step_size_personal: eta_u, eta_v.
        steps_global, steps_personal: tau_u, tau_v.
        smoothness_global, smoothness_personal: L_u, L_v.
        noise_global, noise_personal: standard deviations sigma_u, sigma_v of the stochastic gradients.
        gradient_bound: phi_u, root mean square bound of the stochastic gradient in u.
        pruning_error: D of eq. (32): |u - u * mask|^2 <= D^2 rho.
        least_contributors: kappa*, the least number of devices that keep a weight, over weights and rounds.
        heterogeneity, relative_heterogeneity: delta and varphi (corrected form).
    """

    initial_gap: float
    num_rounds: int
    num_devices: int
    num_global_weights: int
    step_size_global: float
    steps_global: int
    smoothness_global: float
    gradient_bound: float
    pruning_error: float
    least_contributors: int
    noise_global: float = 0.0
    step_size_personal: float = 0.0
    steps_personal: int = 0
    smoothness_personal: float = 0.0
    noise_personal: float = 0.0
    heterogeneity: float = 0.0
    relative_heterogeneity: float = 0.0

    def __post_init__(self) -> None:
        for name in ("num_rounds", "num_devices", "num_global_weights", "steps_global"):
            count(name, getattr(self, name), 1)
        count("steps_personal", self.steps_personal)
        if not 1 <= self.least_contributors <= self.num_devices:
            raise ValueError(
                f"least_contributors = {self.least_contributors} must lie in "
                f"[1, num_devices = {self.num_devices}]: the bound is undefined where none keeps a weight"
            )
        positive("step_size_global", self.step_size_global)
        for name in (
            "initial_gap",
            "smoothness_global",
            "gradient_bound",
            "pruning_error",
            "noise_global",
            "step_size_personal",
            "smoothness_personal",
            "noise_personal",
            "heterogeneity",
            "relative_heterogeneity",
        ):
            non_negative(name, getattr(self, name))


def left_coefficient(constants: BoundConstants, form: Form = "paper") -> float:
    """Return the factor of |grad_u F|^2 on the left side.

    eta_u tau_u / 2, in the corrected form eta_u tau_u (1/2 - K varphi^2 / kappa*); not positive there
    means that the bound says nothing.
    """
    c = constants
    relative = c.num_devices * c.relative_heterogeneity**2 / c.least_contributors if _checked(form) else 0.0
    return c.step_size_global * c.steps_global * (0.5 - relative)


def coefficients(constants: BoundConstants, form: Form = "paper") -> tuple[float, float]:
    """Return (A_1, A_2) of Liu et al. 2024, eq. (40), as its proof (eqs. (59)-(85)) gives them.

    A_1 of the corrected form includes heterogeneity even if nothing is pruned.

    Raises:
        ValueError: if `form` is neither `paper` nor `corrected`.
    """
    c = constants
    k, kappa, rounds = c.num_devices, c.least_contributors, c.num_rounds
    eta, tau, smooth = c.step_size_global, c.steps_global, c.smoothness_global
    grad, noise, error = c.gradient_bound**2, c.noise_global**2, c.pruning_error**2
    if _checked(form):
        first = (
            1.5
            * smooth
            * eta**2
            * (
                tau * k * noise / kappa**2
                + k * smooth**2 * eta**2 * grad * tau**4 / kappa
                + k * tau**2 * grad / kappa
            )
        )
        first += k * eta**3 * smooth**2 * grad * tau**3 / kappa
        first += eta * tau * k * c.heterogeneity**2 / kappa
        second = (2 * eta * tau * smooth**2 * error + 3 * eta**2 * smooth**3 * error * tau**2) / (
            rounds * kappa
        )
        return first, second
    n = c.num_global_weights
    eta_v, tau_v, smooth_v, noise_v = (
        c.step_size_personal,
        c.steps_personal,
        c.smoothness_personal,
        c.noise_personal**2,
    )
    first = 0.5 * eta_v**2 * tau_v**2 * noise_v * smooth_v
    first += 4 * eta_v**3 * smooth_v**2 * noise_v * tau_v**2 * (tau_v - 1)
    first += 1.5 * eta**2 * n**2 * tau**2 * grad * smooth
    first += (
        n * k * grad * eta**3 * smooth**2 * tau**3
        + 3 * n**2 * k * eta**2 * tau**2 * noise * smooth
        + 3 * n**2 * k * grad * smooth**3 * tau**4 * eta**4
    ) / (2 * kappa)
    second = (n * eta * tau * smooth**2 * error + 3 * n**2 * eta**2 * smooth**3 * error * tau**2) / (
        rounds * kappa
    )
    return first, second


def bound(constants: BoundConstants, pruning_ratio_sum: float, *, form: Form = "paper") -> float:
    """Return (F_0 - F*) / G + A_1 + A_2 S.

    Args:
        constants: of the problem and the run.
        pruning_ratio_sum: S, sum of the pruning ratios over all rounds and devices.
        form: `paper` (eq. (40) as printed) or `corrected`.

    Raises:
        ValueError: if `form` is unknown, or S is negative.
    """
    first, second = coefficients(constants, form)
    ratios = float(non_negative("pruning_ratio_sum", pruning_ratio_sum))
    return constants.initial_gap / constants.num_rounds + first + second * ratios


def _checked(form: str) -> bool:
    """Return whether the corrected form is meant."""
    choice("form", form, Form)
    return form == "corrected"
