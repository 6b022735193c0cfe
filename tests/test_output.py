"""What `output_meta` admits: everything that was asked for and not done, or done otherwise."""

from __future__ import annotations

from typing import Any

from queue_fixtures import make_job
from wan_pipelines.plan import PlanRequest, make_plan
from wan_pipelines.profile import load_profile, load_served
from wan_server.output import Ingredients, not_honoured, output_of, task_type
from wan_server.probe import Probe
from wan_server.settings import find_config_dir

T2V = load_profile("wan2.2-t2v-a14b", find_config_dir())
ENCODED = {
    "prompt_tokens": 9,
    "prompt_tokens_dropped": 0,
    "negative_tokens_dropped": 0,
    "negative_used": True,
}


FACTS = {"audio_seconds": 0.0}


def notes(
    probes: dict[str, Any],
    given: dict[str, Any] | None = None,
    facts: dict[str, Any] = FACTS,
    output_fps: int | None = None,
    **encoded: Any,
) -> list[str]:
    """Notes on a 2 s 720P job of 16:9, but for the one on the render scale."""
    profile = load_profile("tiny", find_config_dir())
    plan = make_plan(profile, PlanRequest("a sea", None, "720P", 16 / 9, 2, seed=1, output_fps=output_fps))
    prepared = {"files": dict.fromkeys(probes, "f"), "probes": probes, "notes": ["from the media"]}
    made = Ingredients(plan.to_json(), prepared, {"note": None}, ENCODED | encoded, "f", facts)
    job = make_job(
        input={"resolution": "720P", "duration": 2, "prompt": "a sea", **(given or {})}, not_honoured=("first",)
    )
    found = not_honoured(job, made, plan)
    assert found[:2] == ["first", "from the media"]
    return [note for note in found[2:] if not note.startswith("input.resolution: the model worked at 160x96")]


def image(width: int, height: int) -> dict[str, Any]:
    return {"width": width, "height": height}


def test_nothing_is_said_when_all_was_done() -> None:
    assert notes({"first_frame": image(1920, 1080), "driving_audio": {"seconds": 2.05}}) == []


def test_an_image_of_another_shape_is_cut_and_reported() -> None:
    (note,) = notes({"first_frame": image(1920, 1080), "last_frame": image(500, 500)})
    assert note == "input.last_frame: has another shape than the video; 44% of it was cut off"


def test_sound_of_another_length_is_reported() -> None:
    (cut,) = notes({"driving_audio": {"seconds": 3.0}})
    assert cut == "input.driving_audio: has 3.0 s; it was cut to the 2 s of the video"
    (silent,) = notes({"driving_audio": {"seconds": 1.0}})
    assert silent == "input.driving_audio: ends after 1.0 s; the rest of the video is silent"


def clip(**changes: Any) -> dict[str, Any]:
    return {"width": 1920, "height": 1080, "fps": 16.0, "has_audio": True, **changes}


def test_a_clip_of_another_rate_is_reported() -> None:
    sound = {"audio_seconds": 2.0}
    assert notes({"first_clip": clip()}, facts=sound) == []
    assert notes({"first_clip": clip(fps=15.984)}, facts=sound) == []
    (note,) = notes({"first_clip": clip(fps=29.97)}, facts=sound)
    assert note.startswith("input.first_clip: has 29.97 frames per second, the video has 16;")


def test_a_clip_is_compared_with_the_rate_of_the_file() -> None:
    slow = {"first_clip": clip(fps=24.0, has_audio=False)}
    assert len(notes(slow)) == 1
    assert notes(slow, output_fps=24) == []


def test_a_clip_whose_sound_ends_is_reported_and_a_silent_one_is_not() -> None:
    (note,) = notes({"first_clip": clip()}, facts={"audio_seconds": 1.5})
    assert note == "input.first_clip: its sound ends after 1.5 s; the rest of the video is silent"
    assert notes({"first_clip": clip(has_audio=False)}) == []


def test_a_clip_loses_its_edges_as_an_image_does() -> None:
    (note,) = notes({"first_clip": clip(width=1080, has_audio=False)})
    assert note.startswith("input.first_clip: has another shape than the video")


def test_tokens_that_do_not_fit_are_reported_for_texts_of_the_caller() -> None:
    (note,) = notes({}, prompt_tokens_dropped=7)
    assert note.startswith("input.prompt: ")
    assert "last 7 tokens" in note
    assert notes({}, negative_tokens_dropped=7) == []
    (note,) = notes({}, {"negative_prompt": "blur"}, negative_tokens_dropped=7)
    assert note.startswith("input.negative_prompt: ")


def test_a_negative_prompt_without_guidance_is_reported() -> None:
    (note,) = notes({}, {"negative_prompt": "blur"}, negative_used=False)
    assert note == "input.negative_prompt: model tiny runs at guidance scale 1, where it has no effect"
    assert notes({}, negative_used=False) == []


MADE = {
    "width": 1280,
    "height": 720,
    "seconds": 7.0,
    "fps": 16,
    "frames": 112,
    "has_audio": False,
    "audio_seconds": 0.0,
    "seams": [{"colour": {"gain": [1, 1, 1], "offset": [0, 0, 0]}}],
}


def extra(model: str, seconds: int, heard_s: float | None = None, **job: Any) -> dict[str, Any]:
    """What is said of a video from a first frame, with so much sound."""
    profile = load_served(model, find_config_dir())
    media = ("first_frame",) if heard_s is None else ("first_frame", "driving_audio")
    plan = make_plan(profile, PlanRequest("a sea", "blur", "720P", 16 / 9, seconds, seed=1, media=media))
    probes = {} if heard_s is None else {"driving_audio": Probe("audio", "wav", 1, seconds=heard_s).to_json()}
    prepared = {"files": {"first_frame": "f"}, "probes": probes, "notes": []}
    encoded = ENCODED | {"negative_used": plan.is_guided}
    made = Ingredients(plan.to_json(), prepared, {"note": None}, encoded, "f", MADE)
    wish = {"resolution": "720P", "duration": seconds, "prompt": "a sea", "negative_prompt": "blur"}
    output = output_of(make_job(model=model, input=wish, **job), profile, "http://x/v.mp4", made)
    return output["output_meta"]["outputs"][0]["extra"]


def test_model_and_preset_are_named() -> None:
    said = extra("wan2.2-i2v-a14b", 7)
    assert (said["model"], said["preset"], said["steps"]) == ("wan2.2-i2v-a14b", "quality", 40)
    assert (said["negative_prompt"], said["not_honoured"]) == ("blur", [])
    assert "loras" not in said
    (note,) = said["beyond_training"]
    assert note.startswith("input.duration: model wan2.2-i2v-a14b makes 81 frames in one go; the video is 2 samples")
    assert (said["chaining"], said["sampled_frames"]) == ("prefix", 61 + 61)
    first, second = said["segments"]
    assert first == {
        "frames": [0, 61],
        "sampled_frames": 61,
        "seed": 1,
        "overlap_frames": 0,
        "carried_latents": 0,
    }
    assert (second["frames"], second["overlap_frames"], second["carried_latents"]) == ([61, 112], 9, 0)
    assert second["colour"] == {"gain": [1, 1, 1], "offset": [0, 0, 0]}
    assert second["seed"] != first["seed"]


def test_windows_are_told_by_the_frames_that_they_saw() -> None:
    plan = make_plan(T2V, PlanRequest("a sea", None, "720P", 16 / 9, 15, seed=1, media=()))
    prepared = {"files": {}, "probes": {}, "notes": []}
    made = Ingredients(plan.to_json(), prepared, {"note": None}, ENCODED, "f", MADE)
    output = output_of(make_job(model=T2V.name), T2V, "http://x/v.mp4", made)
    said = output["output_meta"]["outputs"][0]["extra"]
    assert (said["chaining"], said["sampled_frames"], said["overlap_frames"]) == ("windows", 241, 16)
    assert [window["frames"] for window in said["windows"]] == [[0, 73], [57, 129], [113, 185], [169, 240]]
    assert "windows" not in extra("wan2.2-i2v-a14b", 7)


def test_a_preset_without_guidance_names_its_additions_and_uses_no_negative_prompt() -> None:
    said = extra("wan2.2-i2v-a14b:fast", 5)
    assert (said["model"], said["preset"], said["steps"]) == ("wan2.2-i2v-a14b", "fast", 4)
    assert [path.split("/")[0] for path in said["loras"]] == ["lightx2v", "lightx2v"]
    assert (said["negative_prompt"], said["beyond_training"]) == (None, [])
    (note,) = said["not_honoured"]
    assert note == "input.negative_prompt: model wan2.2-i2v-a14b:fast runs at guidance scale 1, where it has no effect"


def test_models_that_were_passed_over_are_named_with_the_reason() -> None:
    why = {"wan2.2-ti2v-5b": "input.first_clip: model wan2.2-ti2v-5b does not take it"}
    assert extra("tiny", 5, options={"passed_over": why})["passed_over"] == why
    assert "passed_over" not in extra("tiny", 5)


def test_the_kind_of_task_follows_the_media() -> None:
    assert task_type({"first_frame", "driving_audio"}) == "first frame"
    assert task_type({"first_frame", "last_frame"}) == "first+last frame"
    assert task_type({"first_clip", "last_frame"}) == "continuation"
    assert task_type(set()) == "text"


def test_a_chain_of_clips_is_listed_with_what_it_heard() -> None:
    said = extra("wan2.2-s2v-14b", 7, heard_s=4.0)
    assert said["clips"] == [
        {"frames": [0, 81], "sampled_frames": 84, "seed": 1, "motion_frames": 0},
        {"frames": [81, 112], "sampled_frames": 48, "seed": 2, "motion_frames": 73},
    ]
    assert (said["sampled_frames"], said["beyond_training"]) == (132, [])
    assert said["driving_audio"]["offset_frames"] == 0
    silent = "ends after 4.0 s; the rest of the video is silent and the model hears silence there"
    assert [note for note in said["not_honoured"] if "audio" in note] == [f"input.driving_audio: {silent}"]
    cut = extra("wan2.2-s2v-14b", 7, heard_s=9.0)["not_honoured"]
    assert "input.driving_audio: has 9.0 s; it was cut to the 7 s of the video" in cut
    assert "clips" not in extra("wan2.2-i2v-a14b", 7)
