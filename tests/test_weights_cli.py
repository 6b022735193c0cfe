"""`wanbox weights get` against a hub on 127.0.0.1: what is fetched, resumed, verified, refused, and left alone."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants, snapshot_download

from hub_site import COMMIT, HubSite, Repository
from local_site import serving
from server_process import ROOT, clean_environment
from wan_pipelines.errors import CheckpointError
from wan_pipelines.preset import LORA_FOLDER, LoraFile, Preset
from wan_pipelines.profile import Profile, list_profiles
from wan_pipelines.weights.download import Download, plan_download, run_download
from wan_pipelines.weights.hub import Hub
from wan_pipelines.weights.receipt import read_receipt
from wan_pipelines.weights.wanted import base_source, lora_sources

CONFIGS = ROOT / "configs"
NAME = "acme/large-diffusers"
LORAS = "acme/loras"
SHARD = "transformer/diffusion_pytorch_model-00002-of-00002.safetensors"
LORA = LoraFile("acme/loras", "four/high.safetensors", "high")
PROFILE = Profile(
    name="large",
    title="Large",
    weights="acme large",
    licence="Apache-2.0",
    conditioning="concat",
    inputs=("first_frame",),
    fps=16,
    max_frames=81,
    size_multiple=16,
    sampler="unipc",
    steps=40,
    shift=5.0,
    guidance_high=3.5,
    guidance_low=3.5,
    boundary=0.9,
    repository=NAME,
    original_repository="acme/large",
    presets={"fast": Preset(sigmas=(1.0, 0.5), guidance_high=1.0, guidance_low=1.0, loras=(LORA,))},
)
PROFILE_TOML = f"""
title = "Large"
weights = "acme large"
licence = "Apache-2.0"
conditioning = "concat"
inputs = ["first_frame"]
fps = 16
max_frames = 81
size_multiple = 16
sampler = "unipc"
steps = 40
shift = 5.0
guidance_high = 3.5
guidance_low = 3.5
boundary = 0.9
repository = "{NAME}"
"""


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def expert(seed: int) -> dict[str, bytes]:
    shards = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = {"metadata": {}, "weight_map": {"a": shards[0], "b": shards[1]}}
    return {
        "config.json": b"{}",
        "diffusion_pytorch_model.safetensors.index.json": json.dumps(index).encode(),
        shards[0]: noise(seed, 3000),
        shards[1]: noise(seed + 1, 5000),
    }


def diffusers_files() -> dict[str, bytes]:
    files = {"model_index.json": b"{}", "README.md": b"# Large", "tokenizer/tokenizer.json": b"{}"}
    files |= {f"transformer/{name}": body for name, body in expert(1).items()}
    files |= {f"transformer_2/{name}": body for name, body in expert(3).items()}
    for part in ("vae", "text_encoder"):
        files |= {f"{part}/config.json": b"{}", f"{part}/model.safetensors": noise(len(part), 2000)}
    return files | {"text_encoder/flax_model.msgpack": noise(9, 4000), "assets/logo.png": noise(10, 4000)}


@pytest.fixture
def site() -> Iterator[HubSite]:
    repositories = {
        NAME: Repository(diffusers_files()),
        LORAS: Repository({LORA.file: noise(20, 900), "four/low.safetensors": noise(21, 900)}, licence=None),
    }
    site = HubSite(repositories)
    with serving(site):
        yield site


@dataclass(frozen=True, slots=True)
class Box:
    """A weights folder and the hub it is filled from."""

    hub: Hub
    folder: Path

    def plan(self, profile: Profile = PROFILE, layout=None) -> Download:
        return plan_download(profile, layout, self.folder, self.hub)

    def get(self, profile: Profile = PROFILE) -> Download:
        download = self.plan(profile)
        run_download(download, self.hub, lambda size: None)
        return download

    def files(self) -> dict[str, bytes]:
        paths = [path for path in self.folder.rglob("*") if path.is_file() and path.name != ".wanbox.json"]
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def box(site: HubSite, tmp_path: Path) -> Box:
    hub = Hub(endpoint=site.url, cache=tmp_path / "cache", offline=False, patience_s=0.01)
    return Box(hub, tmp_path / "weights" / "large")


def test_only_what_the_profile_needs_arrives(box: Box):
    download = box.get()
    wanted = {p: b for p, b in diffusers_files().items() if not p.startswith("assets/") and "flax" not in p}
    assert box.files() == wanted
    assert download.total == download.bytes_to_load == sum(map(len, wanted.values()))
    assert not download.staging.exists()


def test_a_single_expert_is_enough_without_a_boundary(box: Box):
    box.get(replace(PROFILE, boundary=None))
    assert not any(path.startswith("transformer_2/") for path in box.files())


def test_planning_writes_nothing_and_knows_size_and_licence(box: Box, site: HubSite):
    listing = box.plan().listings[0]
    assert (listing.licence, listing.revision) == ("apache-2.0", COMMIT)
    assert not box.folder.parent.exists()
    assert all("/resolve/" not in path for _, path, _ in site.log)


def test_the_additions_of_a_preset_come_with_it_and_later(box: Box, site: HubSite):
    box.get()
    site.log.clear()
    download = box.get(PROFILE.with_preset("fast"))
    assert LORA.path_in(box.folder).read_bytes() == noise(20, 900)
    assert [path for path in box.files() if path.startswith(LORA_FOLDER)] == ["loras/high.safetensors"]
    assert [path for _, path, _ in site.log if "/resolve/" in path] == [f"/{LORAS}/resolve/{COMMIT}/{LORA.file}"]
    assert download.listings[1].licence is None
    assert box.plan(PROFILE.with_preset("fast")).is_done


def test_a_cut_connection_goes_on_where_it_stopped(box: Box, site: HubSite, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    site.repositories[NAME].cuts[SHARD] = [2500]
    box.get()
    assert site.fetched(SHARD) == [None, "bytes=2000-"]
    assert box.files()[SHARD] == diffusers_files()[SHARD]


def test_an_interrupted_download_goes_on_in_the_next_process(box: Box, site: HubSite, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    seen = []

    def interrupt(size: int) -> None:
        seen.append(size)
        if site.fetched(SHARD) and len(seen) > 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_download(box.plan(), box.hub, interrupt)
    assert not box.folder.exists(), "half a download must not look like a checkpoint"
    again = box.plan()
    assert 0 < again.bytes_to_load < again.total
    site.log.clear()
    box.get()
    assert sum(1 for _, path, _ in site.log if "/resolve/" in path) < len(again.listings[0].files)
    assert box.files()[SHARD] == diffusers_files()[SHARD]


def test_what_is_not_what_the_hub_lists_is_refused(box: Box, site: HubSite):
    site.repositories[NAME].forged[SHARD] = noise(99, 5000)
    with pytest.raises(CheckpointError, match=f"{SHARD}: is not what the hub lists"):
        box.get()
    assert not box.folder.exists()
    assert not list(box.plan().staging.glob(f"{SHARD}*"))
    site.repositories[NAME].forged.clear()
    box.get()
    assert box.files()[SHARD] == diffusers_files()[SHARD]


def test_a_small_file_is_verified_too(box: Box, site: HubSite):
    site.repositories[NAME].forged["vae/config.json"] = b"[]"
    with pytest.raises(CheckpointError, match=r"vae/config\.json: is not what the hub lists"):
        box.get()


@pytest.mark.parametrize("path", ["model_index.json", "transformer_2/config.json"])
def test_a_repository_without_a_part_is_refused_before_anything_is_written(box: Box, site: HubSite, path: str):
    del site.repositories[NAME].files[path]
    with pytest.raises(CheckpointError, match=f"{NAME} at .* has no {path}"):
        box.plan()
    assert not box.folder.parent.exists()


def test_an_index_that_names_a_lost_shard_is_refused(box: Box, site: HubSite):
    del site.repositories[NAME].files[SHARD]
    with pytest.raises(CheckpointError, match=f"names {Path(SHARD).name}"):
        box.get()
    assert not box.folder.exists()


def test_a_path_that_leaves_the_folder_is_refused(box: Box, site: HubSite):
    site.repositories[NAME].files["vae/../../x.json"] = b"{}"
    with pytest.raises(CheckpointError, match="outside its folder"):
        box.plan()


def test_a_broken_file_is_mended_and_others_stay(box: Box, site: HubSite):
    box.get()
    (box.folder / SHARD).write_bytes(b"short")
    site.log.clear()
    box.get()
    assert box.files()[SHARD] == diffusers_files()[SHARD]
    assert sum(1 for _, path, _ in site.log if "/resolve/" in path) == 1


def test_somebody_elses_folder_is_left_alone(box: Box, site: HubSite):
    """Such as a converted one: its shards have other names and sizes, and mixing them would ruin it."""
    box.folder.mkdir(parents=True)
    (box.folder / "model_index.json").write_bytes(b"mine")
    assert (box.plan().is_done, box.plan().is_foreign) == (True, True)
    box.get(PROFILE.with_preset("fast"))
    assert sorted(box.files()) == ["loras/high.safetensors", "model_index.json"]
    assert box.plan(PROFILE.with_preset("fast")).is_done


def test_files_of_another_profile_are_not_loaded_twice(box: Box, site: HubSite):
    box.get()
    site.log.clear()
    other = Box(box.hub, box.folder.with_name("other"))
    other.get()
    loaded = {path for _, path, _ in site.log if path.endswith(".safetensors")}
    assert loaded == set()
    assert (other.folder / SHARD).samefile(box.folder / SHARD)


def test_the_shared_cache_is_used_and_works_offline(box: Box, site: HubSite, tmp_path: Path):
    snapshot_download(NAME, endpoint=site.url, cache_dir=tmp_path / "cache")
    site.log.clear()
    assert box.plan().bytes_to_load == 0
    offline = replace(box, hub=replace(box.hub, offline=True, endpoint="http://127.0.0.1:9"))
    offline.get()
    assert box.files()[SHARD] == diffusers_files()[SHARD]
    receipt = read_receipt(box.folder)
    assert receipt is not None
    assert len(receipt.files[SHARD].digest) == 64
    assert all("/resolve/" not in path for _, path, _ in site.log)


def test_a_damaged_cache_is_not_trusted(box: Box, site: HubSite, tmp_path: Path):
    folder = Path(snapshot_download(NAME, endpoint=site.url, cache_dir=tmp_path / "cache"))
    (folder / SHARD).resolve().write_bytes(noise(98, 5000))
    box.get()
    assert box.files()[SHARD] == diffusers_files()[SHARD]


def test_offline_without_a_cache_is_one_line(box: Box):
    with pytest.raises(CheckpointError, match=f"{NAME} is not in the offline cache"):
        replace(box, hub=replace(box.hub, offline=True)).plan()


def test_the_answers_of_a_hub_are_one_line(box: Box, site: HubSite):
    site.repositories[NAME].gated = True
    with pytest.raises(CheckpointError, match=f"{NAME} is gated: accept its terms at {site.url}/{NAME}"):
        box.get()
    site.repositories[NAME].gated = False
    site.repositories[NAME].statuses[SHARD] = 500
    with pytest.raises(CheckpointError, match="the hub answered 500"):
        box.get()
    del site.repositories[NAME]
    with pytest.raises(CheckpointError, match="does not exist, or needs a token"):
        box.plan()
    with pytest.raises(CheckpointError, match=r"http://127.0.0.1:9 cannot be reached: .*"):
        replace(box, hub=replace(box.hub, endpoint="http://127.0.0.1:9")).plan()


def test_two_downloads_of_the_same_weights_do_not_mix(box: Box):
    download = box.plan()

    def get_again(size: int) -> None:
        with pytest.raises(CheckpointError, match="another process is filling it"):
            run_download(download, box.hub, lambda size: None)

    run_download(download, box.hub, get_again)


def test_a_full_disk_is_seen_before_the_download(box: Box, site: HubSite, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(CheckpointError, match=r"0\.0 GB free"):
        box.get()
    assert not box.folder.parent.exists()


def test_the_original_layout_is_fetched_when_asked_for(box: Box, site: HubSite):
    files = {f"{side}_noise_model/{name}": body for side in ("high", "low") for name, body in expert(30).items()}
    files |= {"models_t5_umt5-xxl-enc-bf16.pth": noise(31, 700), "Wan2.1_VAE.pth": noise(32, 700)}
    files |= {"google/umt5-xxl/tokenizer.json": b"{}", "LICENSE.txt": b"Apache"}
    site.repositories["acme/large"] = Repository(files | {"examples/cat.jpg": noise(33, 700)})
    run_download(box.plan(layout="original"), box.hub, lambda size: None)
    assert box.files() == files
    with pytest.raises(CheckpointError, match="holds the original layout"):
        box.plan(layout="diffusers")


@pytest.mark.parametrize("profile", list_profiles(CONFIGS), ids=lambda profile: profile.name)
def test_every_profile_knows_where_its_weights_are(profile: Profile):
    if profile.weights_from != "repository":
        with pytest.raises(CheckpointError, match="there is nothing to download"):
            base_source(profile, None)
        return
    source = base_source(profile, None)
    assert source.repository in (profile.repository, profile.original_repository)
    experts = {want[0].partition("/")[0] for want in source.wants if want[0].endswith(".safetensors")}
    assert ({"transformer_2"} & experts == {"transformer_2"}) == (profile.boundary is not None)
    for preset in profile.presets:
        targets = {source.wants[0][0] for source in lora_sources(profile.with_preset(preset))}
        assert len(targets) == len(profile.presets[preset].loras)


def test_only_what_the_loader_reads_is_fetched(box: Box, site: HubSite):
    files = site.repositories[NAME].files
    files["vae/diffusion_pytorch_model.bin"] = files.pop("vae/model.safetensors")
    with pytest.raises(CheckpointError, match=r"has no vae/\*\.safetensors$"):
        box.plan()


def test_weights_that_are_distilled_already_are_brought_by_oneself(box: Box, site: HubSite):
    distilled = replace(PROFILE, presets={"distilled": Preset(sigmas=(1.0, 0.5), own_weights=True)})
    message = rf"large:distilled: {NAME} does not have these weights, they are brought by oneself; docs/weights\.md"
    with pytest.raises(CheckpointError, match=message):
        box.plan(distilled.with_preset("distilled"))
    assert site.log == []


def test_a_layout_without_a_repository_is_refused(box: Box):
    with pytest.raises(CheckpointError, match="no repository in the original layout"):
        box.plan(replace(PROFILE, original_repository=None), "original")


def wanbox(tmp_path: Path, *words: str, answer: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    configs = tmp_path / "configs" / "models"
    configs.mkdir(parents=True, exist_ok=True)
    (configs / "large.toml").write_text(PROFILE_TOML)
    return subprocess.run(
        [sys.executable, "-m", "wan_server.cli", "weights", *words, "--data-dir", str(tmp_path / "data")],
        env=clean_environment()
        | {"COLUMNS": "200", "WANBOX_CONFIG_DIR": str(tmp_path / "configs"), "HF_HOME": str(tmp_path / "hf")}
        | environment,
        input=answer,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_command_asks_first_and_writes_nothing_on_no(tmp_path: Path, site: HubSite):
    said_no = wanbox(tmp_path, "get", "large", answer="n\n", HF_ENDPOINT=site.url)
    assert said_no.returncode == 1, said_no.stderr
    assert NAME in said_no.stdout
    assert "licence apache-2.0" in said_no.stdout
    assert "to download: 0.02 MB" in said_no.stdout
    assert "nothing was downloaded" in said_no.stdout
    assert not (tmp_path / "data").exists()


def test_the_command_downloads_and_says_when_there_is_nothing_to_do(tmp_path: Path, site: HubSite):
    done = wanbox(tmp_path, "get", "large", "--yes", HF_ENDPOINT=site.url)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data/weights/large" / SHARD).read_bytes() == diffusers_files()[SHARD]
    again = wanbox(tmp_path, "get", "large", HF_ENDPOINT=site.url)
    assert "everything is there already" in again.stdout


def test_the_command_says_what_it_leaves_alone_and_what_cannot_run(tmp_path: Path, site: HubSite):
    folder = tmp_path / "data/weights/large"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_bytes(b"mine")
    left = wanbox(tmp_path, "get", "large", HF_ENDPOINT=site.url)
    assert (left.returncode, left.stdout) == (0, f"{folder}: not fetched by wanbox, left as it is\n")
    (folder / "model_index.json").unlink()
    (tmp_path / "configs/models/deaf.toml").write_text(f'{PROFILE_TOML}cannot_run = "it has no ears"\n')
    asked = wanbox(tmp_path, "get", "deaf", answer="n\n", HF_ENDPOINT=site.url)
    assert asked.returncode == 1, asked.stderr
    assert asked.stdout.index("cannot run yet: it has no ears") < asked.stdout.index("Download?")


def test_the_command_is_clear_about_refusals(tmp_path: Path, site: HubSite):
    offline = wanbox(tmp_path, "get", "large", HF_HUB_OFFLINE="1")
    assert (offline.returncode, "offline cache" in offline.stderr) == (2, True)
    unknown = wanbox(tmp_path, "get", "large:turbo", HF_ENDPOINT=site.url)
    assert (unknown.returncode, "no preset 'turbo'" in unknown.stderr) == (2, True)
    assert "Traceback" not in offline.stderr + unknown.stderr


def test_fetching_needs_no_torch():
    code = "import sys, wan_server.weights_cli, wan_pipelines.weights.download; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean_environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
