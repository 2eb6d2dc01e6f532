"""Transport of white noise along an optical flow, white at every frame."""

from worldr1_kernels.noise_transport.api import TransportPlan, noise_transport, plan_transport

__all__ = ["TransportPlan", "noise_transport", "plan_transport"]
