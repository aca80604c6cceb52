"""What a plan carries to prove its bound."""

from cappuccino.certificate.certificate import Certificate, StageLayers

__all__ = ["Certificate", "StageLayers"]
