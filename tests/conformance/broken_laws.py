"""Broken in the distribution: each breaks one law."""

from broken import Broken

from sagellm_lifetime import LengthDistribution


class Lawless(Broken):
    """Answers with a distribution that breaks a law."""

    law = LengthDistribution

    def predict(self, request):
        result = super().predict(request)
        d = result.distribution
        result.distribution = self.law(d.row, d.age, d.shift, d.max_length, d.curve)
        return result


class SurvivalRises(Lawless):
    class law(LengthDistribution):  # noqa: N801
        def survival(self, n):
            return super().survival(n if n != 30 else 20)


class AliveAtTheCap(Lawless):
    class law(LengthDistribution):  # noqa: N801
        def survival(self, n):
            return max(super().survival(n), 1e-5)


class QuantileOneTooMany(Lawless):
    class law(LengthDistribution):  # noqa: N801
        def quantile(self, q):
            return super().quantile(q) + 1


class IgnoresGiven(Lawless):
    class law(LengthDistribution):  # noqa: N801
        def given(self, age):
            return super().given(min(age, 500))


class LopsidedInterval(Lawless):
    class law(LengthDistribution):  # noqa: N801
        def interval(self, level):
            return self.quantile(level), self.quantile(1.0 - level / 2)


class MeanOfTotal(Lawless):
    class law(LengthDistribution):  # noqa: N801
        def mean(self):
            return self.age + super().mean()


class MeanIsMedian(Lawless):
    class law(LengthDistribution):  # noqa: N801
        def mean(self):
            return float(self.median())


class TailUnderflows(Lawless):
    """Divides survivals, which far out are 0 / 0."""

    class law(LengthDistribution):  # noqa: N801
        def survival(self, n):
            total = LengthDistribution(self.row)
            here = total.survival(self.age)
            return total.survival(self.age + n) / here if here > 1e-12 else 0.0


CATCHES = {
    SurvivalRises: ["check_survival_falls_from_one_to_zero"],
    AliveAtTheCap: ["check_survival_falls_from_one_to_zero"],
    QuantileOneTooMany: ["check_quantile_is_inverse_of_survival"],
    IgnoresGiven: ["check_conditioning"],
    LopsidedInterval: ["check_intervals_are_nested"],
    MeanOfTotal: ["check_mean_is_sum_of_survival"],
    MeanIsMedian: ["check_mean_is_sum_of_survival"],
    TailUnderflows: ["check_far_tails_are_sound"],
}
