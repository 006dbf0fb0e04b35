"""tandem list and rm, of what tandem pull has fetched or begun to."""
import json

from conftest import on_terminal, run_tandem, wait_until
from hub_server import Trouble
from pulling import (BIG, DATA, FILES, NAME, NEEDED, assert_whole, environment, home, hub, model_folder, partial_of,
                     pull, size_of, start_pull)


def test_list_and_rm(hub, home):
    env = environment(hub, home)
    done = run_tandem("list", env=env)
    assert (done.returncode, done.stdout) == (0, b"") and b"no models" in done.stderr
    assert run_tandem("list", "--json", env=env).stdout == b"[]\n"
    hub.add(NAME, {**FILES, "config.json": b'{"a": 2}'}, commit="2" * 40, revision="v2")
    hub.add("acme/other", {"a.safetensors": DATA[:40_000]})
    for name in (NAME, NAME + "@v2", "acme/other"):
        assert pull(hub, home, name=name).returncode == 0

    lines = run_tandem("list", env=env).stdout.decode().splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["name", "revision", "size"], ["acme/other", "main", "40.0"], ["acme/tiny", "main", "3.1"], ["acme/tiny", "v2", "3.1"]]
    assert len({line.index(word) for line, word in zip(lines, ("revision", "main", "main", "v2"))}) == 1
    listed = json.loads(run_tandem("list", "--json", env=env).stdout)
    assert [(one["name"], one["revisions"], one["commit"][0], one["whole"]) for one in listed] == [
        ("acme/other", ["main"], "1", True), (NAME, ["main"], "1", True), (NAME, ["v2"], "2", True)]

    done = run_tandem("rm", NAME + "@v2", env=env)
    assert done.returncode == 2 and "--yes" in done.stderr.decode()
    shown, code = on_terminal(["rm", NAME + "@v2"], env, b"n\n")
    assert code == 0 and "8 B" in shown and "nothing is removed" in shown
    shown, code = on_terminal(["rm", NAME + "@v2"], env, b"y\n")
    assert code == 0 and "removed acme/tiny@v2" in shown
    assert_whole(home)
    assert not (model_folder(home) / "refs/v2").exists()
    assert len(list((model_folder(home) / "blobs").iterdir())) == len(NEEDED)

    assert run_tandem("rm", NAME, "--yes", env=env).returncode == 0
    assert not model_folder(home).exists()
    assert [one["name"] for one in json.loads(run_tandem("list", "--json", env=env).stdout)] == ["acme/other"]
    for wrong in (NAME, "acme/other@v9", "acme/../other", "acme/other@../../main"):
        assert run_tandem("rm", wrong, "--yes", env=env).returncode == 2
    assert (model_folder(home, "acme/other") / "refs/main").exists()


def test_unfinished_pull_is_listed_and_removed(hub, home):
    env = environment(hub, home)
    hub.troubles[BIG] = Trouble(pause_s=0.05)
    process = start_pull(hub, home)
    assert wait_until(lambda: size_of(partial_of(home)) > 100_000)
    busy = run_tandem("rm", NAME, "--yes", env=env)
    process.kill()
    process.communicate()
    assert busy.returncode == 2 and "is being pulled" in busy.stderr.decode()
    (one,) = json.loads(run_tandem("list", "--json", env=env).stdout)
    assert one["whole"] is False and one["bytes"] > 100_000
    assert "(not whole)" in run_tandem("list", env=env).stdout.decode()
    assert run_tandem("rm", NAME, "--yes", env=env).returncode == 0
    assert not model_folder(home).exists()
