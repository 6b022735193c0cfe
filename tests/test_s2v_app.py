"""A picture that moves to a sound, through HTTP, queue and worker with the embedded sister of S2V."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from front_end import APP, front_end
from make_face_sample import SEEN, speaker
from media_samples import make_audio, make_image, read_audio, read_video
from mp4_facts import examine, ffmpeg_complaints
from running_tasks import completed, kill_worker, reached, submit, video_of
from server_process import ROOT, Server, running_server
from test_s2v_speech import write_wave
from tinywan.lipsync import correlation, envelope, lag

MODEL = "tiny-s2v"
SAMPLES = ROOT / "configs" / "samples"
FPS = 16
RATE = 44_100
#: frames on which the click track clicks; uneven, so that only one offset fits
CLICKS = (5, 12, 26, 33, 47, 61, 70, 83, 97, 118, 131, 150, 163, 187, 204, 229)
AAC_FRAME = 1024


def click_track(path: Path, seconds: float) -> Path:
    """10 ms of 2 kHz at the moment in which each of those frames comes up."""
    samples = np.zeros(round(seconds * RATE))
    click = 0.8 * np.sin(2 * np.pi * 2000 * np.arange(RATE // 100) / RATE)
    for start in (round(frame / FPS * RATE) for frame in CLICKS if frame < seconds * FPS - 1):
        samples[start : start + len(click)] = click
    return write_wave(path, samples, RATE)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"WANBOX_MODELS": f"tiny,{MODEL}", "WANBOX_CHECKPOINT_EVERY_S": "0", "WANBOX_HEARTBEAT_S": "0.5"}
    with running_server(tmp_path_factory.mktemp("s2v") / "data", settings=settings) as running:
        yield running


def request(first_frame: Path, sound: Path, seconds: int) -> dict[str, Any]:
    given = {"prompt": "a face", "first_frame": str(first_frame), "driving_audio": str(sound), "duration": seconds}
    return {"app": APP, "input": {**given, "resolution": "720P", "prompt_extend": False, "seed": 3}}


def offset_s(given: Path, made: Path) -> float:
    """By how much the sound of `made` comes late: where the loudness of both fits best, to the millisecond."""
    loud = []
    for path in (given, made):
        sound, rate = read_audio(path)
        starts = np.arange(int(sound.shape[1] / rate * 1000)) * rate // 1000
        loud.append(np.add.reduceat(np.abs(sound[0]), starts))
    length = min(map(len, loud))
    a, b = (envelope[:length] for envelope in loud)
    shifts = range(-500, 501)
    fits = [float(np.dot(a[max(0, -s) : length - max(0, s)], b[max(0, s) : length - max(0, -s)])) for s in shifts]
    return shifts[int(np.argmax(fits))] / 1000


# 5 s, one whole clip, are the speech below; how other lengths are divided is in test_s2v_clips.py
@pytest.mark.parametrize(("seconds", "clips"), [(2, [32]), pytest.param(15, [81, 80, 79], marks=pytest.mark.slow)])
def test_from_a_picture_and_clicks_to_a_video_of_that_length(server, first_frame, tmp_path, seconds, clips):
    clicks = click_track(tmp_path / "clicks.wav", seconds)
    task = completed(server, submit(server, request(first_frame, clicks, seconds)))
    video = video_of(task, tmp_path / "video.mp4")
    facts = examine(video)
    assert (facts.width, facts.height, facts.frames, facts.fps) == (1280, 720, FPS * seconds, FPS)
    assert abs(facts.seconds - seconds) < 0.001
    assert ffmpeg_complaints(video) == ""
    sound, rate = read_audio(video)
    assert abs(sound.shape[1] - seconds * rate) <= AAC_FRAME
    assert abs(offset_s(clicks, video)) < 0.5 / FPS
    (meta,) = task["output"]["output_meta"]["outputs"]
    extra = meta["extra"]
    assert (extra["model"], extra["task_type"], extra["has_audio"]) == (MODEL, "first frame", True)
    assert [stop - start for start, stop in (clip["frames"] for clip in extra["clips"])] == clips
    assert [clip["seed"] for clip in extra["clips"]] == [3 + number for number in range(len(clips))]
    assert [clip["motion_frames"] for clip in extra["clips"]] == [0, 25, 25][: len(clips)]
    assert extra["driving_audio"] == {"seconds": seconds, "offset_frames": 0}
    assert not [note for note in extra["not_honoured"] if "driving_audio" in note]


def test_the_face_of_the_samples_speaks_their_speech(server, tmp_path):
    task = completed(server, submit(server, request(SAMPLES / "face.png", SAMPLES / "speech.wav", 5)))
    video = torch.from_numpy(read_video(video_of(task, tmp_path / "video.mp4"))).permute(0, 3, 1, 2) / 127.5 - 1
    assert len(video) == FPS * 5
    frames = functional.interpolate(video, SEEN[::-1], mode="area").transpose(0, 1)
    seen = speaker(SEEN[1]).measure(frames).numpy()
    sound, rate = read_audio(SAMPLES / "speech.wav")
    assert rate == 16_000
    loud = envelope(sound[0], FPS * 5)
    assert correlation(seen, loud) > 0.7
    assert abs(lag(loud, seen, most=8)) <= 1
    extra = task["output"]["output_meta"]["outputs"][0]["extra"]
    assert "not a Wan release" in extra["weights"]
    assert [clip["frames"] for clip in extra["clips"]] == [[0, 80]]
    assert extra["driving_audio"] == {"seconds": 5, "offset_frames": 0}


@pytest.mark.slow
def test_a_killed_worker_goes_on_in_the_second_clip_and_makes_the_same_file(server, first_frame, tmp_path):
    wish = request(first_frame, make_audio(tmp_path / "a.mp3", 4.0, "mp3"), 6)
    whole = completed(server, submit(server, wish))
    job = submit(server, wish)
    reached(server, job, 45, 80)
    kill_worker(server)
    again = completed(server, job)
    files = [video_of(task, tmp_path / f"{task['id']}.mp4").read_bytes() for task in (whole, again)]
    assert files[0] == files[1]
    steps = [int(step) for log in again["logs"] for step in re.findall(r"denoising: (\d+) of 16", log["content"])]
    assert min(steps[next(i for i, step in enumerate(steps) if step >= 8) :]) >= 8  # the first clip was not made again
    (note,) = [n for n in again["output"]["output_meta"]["outputs"][0]["extra"]["not_honoured"] if "driving" in n]
    assert note.startswith("input.driving_audio: ends after 4.")
    assert note.endswith("the rest of the video is silent and the model hears silence there")


def test_with_a_last_frame_the_video_ends_on_it_and_says_how(server, first_frame, tmp_path):
    last = make_image(tmp_path / "last.png", (640, 360), "PNG")
    clicks = click_track(tmp_path / "clicks.wav", 17)  # longer than any video
    wish = request(first_frame, clicks, 2)
    wish["input"]["last_frame"] = str(last)
    task = completed(server, submit(server, wish))
    video = video_of(task, tmp_path / "video.mp4")
    facts = examine(video)
    assert (facts.frames, facts.fps) == (2 * FPS, FPS)
    sound, rate = read_audio(video)
    assert abs(sound.shape[1] - 2 * rate) <= AAC_FRAME
    assert abs(offset_s(clicks, video)) < 0.5 / FPS
    (meta,) = task["output"]["output_meta"]["outputs"]
    extra = meta["extra"]
    assert (extra["model"], extra["task_type"]) == (MODEL, "first+last frame")
    told = extra["last_frame"]
    assert (told["steered_frames"], told["still_frames"]) == ([17, 32], [29, 32])
    assert "does not know last frames" in told["how"]
    assert not [note for note in extra["not_honoured"] if "last_frame" in note]
    assert "input.driving_audio: has 17.0 s; it was cut to the 2 s of the video" in extra["not_honoured"]
    assert [given["extra"]["role"] for given in task["output"]["output_meta"]["inputs"]] == [
        "first_frame",
        "last_frame",
        "driving_audio",
    ]


def test_the_model_that_hears_is_taken_where_there_is_sound(tmp_path):
    picture = make_image(tmp_path / "a.png", (640, 360), "PNG").read_bytes()
    sound = make_audio(tmp_path / "a.wav", 3.0).read_bytes()
    with front_end(tmp_path / "front", models=f"{MODEL},tiny") as front:
        given = {"first_frame": front.upload(picture, filename="a.png")["uri"]}
        heard = {**given, "driving_audio": front.upload(sound, filename="a.wav")["uri"]}

        def taken(**media: str) -> Any:
            return front.queue.get(front.task(media=media)).job

        assert (taken(**given).model, taken(**heard).model) == ("tiny", MODEL)
        job = taken(**heard, last_frame=given["first_frame"])
        assert job.model == MODEL
        assert not any("driving_audio" in note for note in job.not_honoured)
        both = front.queue.get(front.task(media={**given, "last_frame": given["first_frame"]})).job
        assert both.model == "tiny"


def test_alone_it_refuses_what_it_cannot_do(tmp_path):
    picture = make_image(tmp_path / "a.png", (640, 360), "PNG").read_bytes()
    with front_end(tmp_path / "front", models=MODEL) as front:
        answer = front.run(media={"first_frame": front.upload(picture, filename="a.png")["uri"]})
        assert answer.status_code == 422
        assert answer.json()["detail"] == f"input.driving_audio: model {MODEL} needs it"
