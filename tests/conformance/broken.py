"""What predictors that are broken on purpose share: sound, until a subclass breaks one thing."""

from sagellm_lifetime import Predictor, SurvivalLifetimePredictor
from sagellm_lifetime.models.survival import SurvivalModel


class Broken(SurvivalLifetimePredictor):
    """Sound until a subclass breaks one thing."""


class BrokenModel(SurvivalModel):
    """A model that is sound until a subclass breaks one thing."""

    name = "BrokenModel"

    def __init_subclass__(cls) -> None:
        cls.name = cls.__name__


def made(broken):
    """Return a predictor of a broken class, or around a broken model; none is registered."""
    return broken(seed=1) if issubclass(broken, Predictor) else Predictor(broken(seed=1))
