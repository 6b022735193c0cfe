"""What can go wrong between a request and an MP4. No torch.

PipelineError
├── ProfileError      a model profile (TOML) is missing, has an unknown key or a bad value
├── PlanError         the request asks for what the model cannot do; the message names the input field
├── CheckpointError   weights are missing, incomplete or do not fit the profile
├── PlacementError    there is not enough memory; the message has the numbers
│   └── NoRoomError   the device has too little of it now
└── RenderError       the computation gave something that is not a video (NaN, wrong file)
"""

from __future__ import annotations


class PipelineError(Exception):
    """The pipeline cannot go on."""


class ProfileError(PipelineError):
    """A model profile is missing or wrong."""


class PlanError(PipelineError):
    """The request exceeds what the model can do."""


class CheckpointError(PipelineError):
    """The weights are missing, incomplete or do not fit the profile."""


class PlacementError(PipelineError):
    """There is not enough memory for the model or for the plan."""


class NoRoomError(PlacementError):
    """No way of keeping the weights fits into what is free on the device; it may when other models leave."""


class RenderError(PipelineError):
    """The computation failed to give a video."""
