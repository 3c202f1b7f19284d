"""To a Hub on this machine and back in fresh processes: shards, halves, revisions, private, offline, errors, metrics.

One process pushes, one loads with a token, one without network; what each found is asserted inside it or here.
"""

import json
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.hub_commands import environment
from tests.hub_server import LocalHub, Repo
from tests.pipelines.test_optional_components import Bomb
from tests.test_model_card import render, results_of, two_doses

PUSH = """
import sys, torch
from datasets import DatasetDict
from diffusers_ct import CTDiffusionPipeline, hub_datasets
from diffusers_ct.hub import push_dataset, push_model, render_dataset_card, render_model_card
from tests.test_hub import CARD, pipeline, rows
from tests.test_model_card import two_doses

made = sys.argv[1]
card = lambda repo: render_model_card(pipe, benchmark=two_doses(), **{**CARD, "repo_id": repo})
def changed(seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in pipe.unet.parameters():
            p.add_(0.02 * torch.randn_like(p))
    pipe.save_pretrained(f"{made}/{seed}")
pipe = pipeline()
changed(1)
pipe = CTDiffusionPipeline.from_pretrained(f"{made}/1")  # knows where it came from
print(pipe.push_to_hub("user/model", card=card("user/model"), variant="fp16"))
changed(2)
push_model(f"{made}/2", "user/model", card=card("user/model"))
changed(3)
pipe.push_to_hub("user/model", card=card("user/model"), revision="v3", commit_message="Third")
push_model(f"{made}/3", "user/sharded", card=card("user/sharded"), private=True, variant="fp16", max_shard_size="8KB")
hub_datasets._PARQUET_BYTES = 1  # a file a row
push_dataset(DatasetDict(train=rows()), "user/ds", licence="apache-2.0", description="Drawn.", private=True)
small = DatasetDict(train=rows(2))
text = render_dataset_card(small, repo_id="user/ds", licence="apache-2.0", description="Two of them.")
push_dataset(small, "user/ds", card=text, revision="small")
rows().push_to_hub("user/plain")
"""

COMMON = """
import contextlib, io, json, sys
import numpy as np, torch
from diffusers_ct import CTDiffusionPipeline, load_paired_ct
from diffusers_ct.cli import main
from tests.test_hub import rows

made, online, sha = sys.argv[1], sys.argv[2] == "online", sys.argv[3]
load = CTDiffusionPipeline.from_pretrained
local = {seed: load(f"{made}/{seed}") for seed in (1, 2, 3)}

def equal(pipe, seed, cast=lambda p: p):
    pairs = zip(pipe.unet.parameters(), local[seed].unet.parameters(), strict=True)
    return all(torch.equal(a, cast(b)) for a, b in pairs)

def told(call):
    try:
        call()
    except (OSError, ValueError) as error:
        text = str(error)
        assert "\\n" not in text and "http" not in text and "hf_" not in text and len(text) < 300, text
        return text
    raise AssertionError("it was not refused")

def command(*words):
    sys.argv, out, err = ["diffusers-ct", *words], io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            assert ended.code == 2 and "Traceback" not in err.getvalue(), err.getvalue()
            (line,) = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
            return line
    raise AssertionError("it was not refused")

def synthesize(model, *flags):
    return command("synthesize", "made.nii.gz", "--model", model, *flags)

def evaluate(dataset):
    return command("evaluate", "out", "--dataset", dataset, "--model", "user/model", "--no-classical")

# what came is what was pushed
assert equal(load("user/model"), 2) and equal(load("user/model", revision="v3"), 3)
assert equal(load("user/model", revision=sha), 1), "by commit"
sharded = load("user/sharded")
assert equal(sharded, 3)
half = load("user/sharded", variant="fp16", dtype=torch.float16)
assert half.unet.dtype == torch.float16 and equal(half, 3, lambda p: p.half())
hu = np.random.default_rng(0).normal(0, 50, (2, 16, 16)).astype("float32")
restored = [p(hu, spacing_mm=(1, 1, 1), output_type="np").volumes for p in (sharded, local[3])]
assert np.abs(restored[0] - restored[1]).max() < 0.05 < np.abs(restored[0] - hu).max(), "kernels round by alignment"
assert sharded.contract.training_data == "64 phantoms"
if online:
    assert len(load_paired_ct("user/ds", split="train", revision="small")) == 2
for name in ("user/ds", "user/plain"):
    ds = load_paired_ct(name, split="train")
    assert ds.features["low"].dtype == "int16" and ds["checksum"] == rows()["checksum"], name
    assert np.array_equal(np.asarray(ds[1]["low"]), np.asarray(rows()[1]["low"]))
"""

LOAD = (
    COMMON
    + """
from huggingface_hub import ModelCard
streamed = list(load_paired_ct("user/ds", split="train", streaming=True))
assert [r["scan_key"] for r in streamed] == rows()["scan_key"]
load("user/planted")
found = {
    "gated": told(lambda: load("user/gated")),
    "missing": told(lambda: load("user/missing")),
    "private": told(lambda: load("user/secret", token=False)),
    "wrong": told(lambda: load("user/secret", token="hf_wrong")),
    "revision": told(lambda: load("user/model", revision="v9")),
    "pickled": told(lambda: load("user/pickled")),
    "bare": told(lambda: load("user/bare")),
    "code": told(lambda: load("user/code")),
    "class": told(lambda: load("user/class")),
    "data gated": told(lambda: load_paired_ct("user/gated")),
    "data missing": told(lambda: load_paired_ct("user/missing")),
    "data private": told(lambda: load_paired_ct("user/secret", token=False)),
    "data wrong": told(lambda: load_paired_ct("user/secret", token="hf_wrong")),
    "data revision": told(lambda: load_paired_ct("user/ds", revision="v9")),
    "data split": told(lambda: load_paired_ct("user/ds", split="test")),
    "data script": told(lambda: load_paired_ct("user/script")),
    "data pickled": told(lambda: load_paired_ct("user/pickled")),
    "command gated": synthesize("user/gated"),
    "command missing": synthesize("user/missing"),
    "command revision": synthesize("user/model", "--revision", "v9"),
    "command pickled": synthesize("user/pickled"),
    "command code": synthesize("user/code"),
    "command data": evaluate("user/gated"),
    "command split": evaluate("user/ds"),
}
results = [[r.dataset_config, r.metric_type, r.metric_value, r.dataset_split, r.metric_args]
           for r in ModelCard.load("user/model").data.eval_results]
print("FOUND" + json.dumps([found, results]))
"""
)
SAYS = {
    "gated": "user/gated is gated: ask for access",
    "missing": "There is no user/missing on the Hub, or it is private and your token may not read it.",
    "private": "There is no user/secret on the Hub, or it is private: log in",
    "wrong": "The Hub does not accept your token",
    "revision": "user/model has no revision 'v9'.",
    "pickled": "user/pickled has no safetensors",
    "bare": "user/bare is no pipeline: it has no model_index.json.",
    "code": "user/code brings code for its unet (unet/diffusers_ct.py)",
    "class": "user/class asks for a pipeline class of its own",
    "data gated": "user/gated is gated",
    "data missing": "There is no user/missing on the Hub",
    "data private": "or it is private: log in",
    "data wrong": "The Hub does not accept your token",
    "data revision": "user/ds has no revision 'v9'",
    "data split": "user/ds on the Hub cannot be opened so: Unknown split",
    "data script": "scripts are no longer supported",
    "data pickled": "neither a folder here nor a dataset on the Hub that can be opened",
    "command gated": "user/gated is gated: ask for access",
    "command missing": "There is no user/missing on the Hub",
    "command revision": "user/model has no revision 'v9'",
    "command pickled": "user/pickled has no safetensors",
    "command code": "no code of a repository is run",
    "command data": "user/gated is gated",
    "command split": "Unknown split",
}

OFFLINE = (
    COMMON
    + """
found = {
    "model": told(lambda: load("user/planted2")),
    "data": told(lambda: load_paired_ct("user/never")),
    "command": synthesize("user/planted2"),
    "command data": evaluate("user/never"),
    "revision": told(lambda: load("user/model", revision="v4")),
    "data revision": told(lambda: load_paired_ct("user/ds", revision="small")),
}
assert "is not a synthesis checkpoint" in synthesize("user/model"), "what a model that restores is told, once it is loaded"
print("FOUND" + json.dumps([found, []]))
"""
)


def run(code: str, env: dict[str, str], *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def found(output: str) -> tuple[dict[str, str], list]:
    return tuple(json.loads(output.partition("FOUND")[2]))


@pytest.fixture(scope="module")
def trip(tmp_path_factory):
    """A Hub to which everything was pushed, and the folder of what was pushed."""
    made = tmp_path_factory.mktemp("secret_place")
    with LocalHub() as hub:
        url = run(PUSH, environment(hub.url, made / "pushing"), made)
        hub.requests.clear()
        plant(hub, made / "exploded")
        yield hub, made, url.strip().rsplit("/", 1)[1]


def plant(hub: LocalHub, mark: Path) -> None:
    """Repositories that are closed, or hold pickles and code which would make the file `mark`."""
    files = dict(hub.repos["models", "user/model"].commits[hub.repos["models", "user/model"].head])
    bomb, code = pickle.dumps(Bomb(str(mark))), f"open({str(mark)!r}, 'w')\nclass UNet3DCTModel: pass\n".encode()
    weights = "unet/diffusion_pytorch_model.safetensors"
    index = json.loads(files["model_index.json"])
    planted = {
        "planted": {**files, "unet/diffusion_pytorch_model.bin": bomb, "pytorch_model.bin": bomb, "unet/x.pkl": bomb},
        "planted2": files,
        "pickled": {k: v for k, v in files.items() if k != weights} | {"unet/diffusion_pytorch_model.bin": bomb},
        "bare": {"README.md": b"words"},
        "code": {**files, "unet/diffusers_ct.py": code},
        "class": {**files, "model_index.json": json.dumps({**index, "_class_name": ["evil", "Evil"]}).encode(), "evil.py": code},
    }  # fmt: skip
    for name, content in planted.items():
        hub.repos["models", f"user/{name}"] = repo = Repo()
        repo.commit(content)
    for kind in ("models", "datasets"):
        for closed in ("gated", "private"):
            hub.repos[kind, f"user/{'secret' if closed == 'private' else closed}"] = repo = Repo(**{closed: True})
            repo.commit({})
    for name, content in {"script": {"script.py": code}, "pickled": {"data.pkl": bomb}}.items():
        hub.repos["datasets", f"user/{name}"] = repo = Repo()
        repo.commit(content)


def test_what_was_pushed_is_whole_and_names_no_place_of_this_machine(trip):
    hub, _, sha = trip
    model, sharded = hub.repos["models", "user/model"], hub.repos["models", "user/sharded"]
    assert len(model.commits) == 4 and sha in model.commits  # an empty one, and one a push
    assert any(".fp16" in name for name in model.commits[sha])
    assert not any(".fp16" in name for name in model.commits[model.head]), "halves of other weights are not left"
    files = sharded.commits[sharded.head]
    shards = [name for name in files if name.endswith(".safetensors")]
    assert sharded.private and len([name for name in shards if ".fp16-" in name]) > 1
    assert len([name for name in shards if ".fp16-" not in name]) > 1
    assert json.loads(files["model_index.json"])["unet"] == ["diffusers_ct", "UNet3DCTModel"]
    assert hub.repos["datasets", "user/ds"].private
    pushed = [("models", "user/model"), ("models", "user/sharded"), ("datasets", "user/ds")]
    for repo in (hub.repos[key] for key in pushed):
        for path, content in (item for commit in repo.commits.values() for item in commit.items()):
            assert b"secret_place" not in content and b"_name_or_path" not in content, path


def test_everything_comes_back_in_a_fresh_process_and_then_without_a_network(trip):
    hub, made, sha = trip
    home = made / "loading"
    sentences, results = found(run(LOAD, environment(hub.url, home), made, "online", sha))
    for name, text in SAYS.items():
        assert text in sentences[name], (name, sentences[name])
    assert not (made / "exploded").exists()
    assert not [request for request in hub.requests if request.endswith((".bin", ".pkl"))], "not even downloaded"

    # metrics: each number with its convention, n and interval, as the benchmark had it
    expected = results_of(render(benchmark=two_doses()))
    assert results == [
        [r.dataset_config, r.metric_type, r.metric_value, r.dataset_split, r.metric_args] for r in expected
    ]
    assert any("interval_95" in args for *_, args in results) and all(args["convention"] for *_, args in results)

    before = len(hub.requests)
    env = environment(hub.url, home, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    sentences, _ = found(run(OFFLINE, env, made, "offline", sha))
    for name, text in sentences.items():
        assert "HF_HUB_OFFLINE is set, and what is needed of user/" in text, (name, text)
    assert len(hub.requests) == before


KILLED = """
import sys
from datasets import DatasetDict
from diffusers_ct import hub_datasets
from diffusers_ct.hub import push_dataset, push_model
from tests.test_hub import rows
made, kind, name = sys.argv[1:]
hub_datasets._PARQUET_BYTES = 1  # a file a row
card = open(f"{made}/card.md").read().replace("user/model", name)
if kind == "models":
    push_model(f"{made}/pipeline", name, card=card, variant="fp16", max_shard_size="8KB")
else:
    push_dataset(DatasetDict(train=rows()), name, licence="apache-2.0", description="Drawn.")
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["models", "datasets"])
def test_a_killed_push_leaves_nothing_half_and_the_same_call_sends_the_rest(kind, tmp_path):
    from tests.test_hub import pipeline

    pipeline().save_pretrained(tmp_path / "pipeline")
    (tmp_path / "card.md").write_text(render())
    with LocalHub() as hub:
        env = environment(hub.url, tmp_path / "home")
        hub.uploads_before_stop = 2
        command = [sys.executable, "-c", KILLED, str(tmp_path), kind, "user/a"]
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert hub.stopped.wait(200), "it uploads"
        deadline = time.monotonic() + 60
        while len(hub.lfs) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        assert process.wait(20) == -signal.SIGKILL
        repo = hub.repos[kind, "user/a"]
        assert repo.commits[repo.head] == {} and len(repo.commits) == 1 and len(hub.lfs) == 2, "nothing half"

        hub.uploads_before_stop = None
        sent = set(hub.lfs)
        hub.requests.clear()
        run(KILLED, env, tmp_path, kind, "user/a")
        assert len(repo.commits) == 2
        again = {request.removeprefix("PUT /lfs/") for request in hub.requests if request.startswith("PUT /lfs/")}
        assert again and not again & sent, "what was there is not sent again"
        run(KILLED, env, tmp_path, kind, "user/b")
        other = hub.repos[kind, "user/b"]
        whole = {name: content.replace(b"user/b", b"user/a") for name, content in other.commits[other.head].items()}
        assert set(whole) == set(repo.commits[repo.head])
        different = [name for name in whole if whole[name] != repo.commits[repo.head][name]]
        assert not [name for name in different if name != "README.md"], "the same bytes as without a kill"
