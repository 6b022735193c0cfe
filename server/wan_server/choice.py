"""Which of the served models makes a video: the first, in the configured order, that can do all that is asked."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from wan_pipelines.errors import PlanError
from wan_pipelines.plan import STARTS, PlanRequest, check_media, make_plan
from wan_pipelines.profile import Profile
from wan_server.errors import InvalidInput
from wan_server.media import COMBINATIONS, LIMITS, ROLES
from wan_server.schema import AppInput

Json = dict[str, Any]

#: the longest video of the app; its schema has the number
LONGEST_S: Final = 15
SHORTEST_S: Final = 2
SHORTEST_CLIP_S: Final = (LIMITS["first_clip"].seconds or (0.0, 0.0))[0]


@dataclass(frozen=True, slots=True)
class Choice:
    """The model that was taken."""

    profile: Profile
    #: models that come first in the configured order or suit the request better -> why they were not taken
    passed_over: Mapping[str, str]


def wish_of(parsed: AppInput, clip_seconds: float | None) -> PlanRequest:
    """What decides among models. The shape of the picture is not yet known; its own limits are checked elsewhere."""
    return PlanRequest(
        prompt=parsed.prompt or "",
        negative_prompt=parsed.negative_prompt,
        resolution=parsed.resolution,
        aspect=1.0,
        seconds=parsed.duration,
        seed=0,
        media=tuple(role for role in ROLES if getattr(parsed, role, None) is not None),
        clip_seconds=clip_seconds,
    )


def choose(profiles: Sequence[Profile], wish: PlanRequest) -> Choice:
    """The model for a request. Raises InvalidInput that says of every model why not, with field and limit.

    A request for text alone goes to a model for text before others, one with driving audio to a model that hears it.
    While the length of a clip is unknown, a model that can do it for every length goes before one that may not.
    """
    if _is_clip_unmeasured(wish):
        shortest = replace(wish, clip_seconds=SHORTEST_CLIP_S)
        wish = shortest if any(refusal(profile, shortest) is None for profile in profiles) else wish
    refusals = {profile.served_as: refusal(profile, wish) for profile in profiles}
    able = [profile for profile in profiles if refusals[profile.served_as] is None]
    if not able:
        raise InvalidInput(explain({model: why for model, why in refusals.items() if why is not None}))
    drawbacks = {profile.served_as: _drawback(profile, wish) for profile in profiles}
    taken = min(able, key=lambda profile: drawbacks[profile.served_as] is not None)  # the first of the best
    first = {profile.served_as for profile in profiles[: profiles.index(taken)]}
    better = {model for model, drawback in drawbacks.items() if drawbacks[taken.served_as] and not drawback}
    reasons = {model: refusals[model] or drawbacks[model] or "" for model in refusals if model in first | better}
    return Choice(taken, reasons)


def refusal(profile: Profile, wish: PlanRequest) -> str | None:
    """Why a model cannot do it, beginning with the field; None when it can."""
    if not wish.media and not profile.text_only:
        needs = " or ".join(role for role in STARTS if role in profile.inputs)
        return f"app: model {profile.name} makes no video from text alone; it needs {needs}"
    try:
        if _is_clip_unmeasured(wish):
            check_media(profile, wish.media)
        else:
            make_plan(profile, wish)
    except PlanError as error:
        return str(error)
    return None


def explain(refusals: Mapping[str, str]) -> str:
    """One message for the reasons of all models, which begin with their field."""
    reasons = set(refusals.values())
    if len(reasons) == 1:
        return reasons.pop()
    fields = {reason.partition(": ")[0] for reason in reasons}
    field = fields.pop() if len(fields) == 1 else "input"
    said = (f"{model}: {why.removeprefix(f'{field}: ')}" for model, why in refusals.items())
    return f"{field}: no model of this server can do this. {'; '.join(said)}"


def abilities(profiles: Sequence[Profile], combinations: Collection[frozenset[str]] = COMBINATIONS) -> list[Json]:
    """What this server does with each combination of inputs: which models, up to how many seconds, or why not.

    Lengths behind a clip hold for the shortest clip, to which a model adds the most.
    """
    ordered = [tuple(role for role in ROLES if role in roles) for roles in combinations]
    return [_ability(profiles, media) for media in sorted(ordered, key=lambda m: [ROLES.index(r) for r in m])]


def _ability(profiles: Sequence[Profile], media: tuple[str, ...]) -> Json:
    clip_seconds = SHORTEST_CLIP_S if "first_clip" in media else None
    seconds = SHORTEST_S if clip_seconds is None else SHORTEST_S + 1  # it must be longer than the clip
    wish = PlanRequest("", None, "720P", aspect=1.0, seconds=seconds, seed=0, media=media, clip_seconds=clip_seconds)
    able = {p.served_as: _longest_s(p, wish) for p in profiles if refusal(p, wish) is None}
    found: Json = {"inputs": list(media), "models": able}
    if not able:
        found["why_not"] = explain({p.served_as: refusal(p, wish) or "" for p in profiles})
    elif "driving_audio" in media and not any("driving_audio" in p.inputs for p in profiles if p.served_as in able):
        found["note"] = "no model that can do this listens to driving_audio: it becomes the sound of the video"
    return found


def _longest_s(profile: Profile, wish: PlanRequest) -> int:
    lengths = range(LONGEST_S, wish.seconds, -1)
    return next((s for s in lengths if refusal(profile, replace(wish, seconds=s)) is None), wish.seconds)


def _drawback(profile: Profile, wish: PlanRequest) -> str | None:
    """Why another model that can do it too would be better."""
    if not wish.media and profile.conditioning != "text":
        return f"model {profile.name} is not for text alone"
    if "driving_audio" in wish.media and "driving_audio" not in profile.inputs:
        return f"input.driving_audio: model {profile.name} does not listen to it"
    return None


def _is_clip_unmeasured(wish: PlanRequest) -> bool:
    return "first_clip" in wish.media and wish.clip_seconds is None
