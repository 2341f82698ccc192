"""What predictors that are broken on purpose share: sound, until a subclass breaks one thing."""

from sagellm_lifetime import SurvivalLifetimePredictor


class Broken(SurvivalLifetimePredictor):
    """Sound until a subclass breaks one thing."""

    name = "Broken"

    def __init_subclass__(cls) -> None:
        cls.name = cls.__name__
