"""A fork is as good as a process of its own: nothing of a test or of another run is left in it."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.processes import environment_of, environment_of_launcher, run, run_alone, run_together, start

pytestmark = pytest.mark.usefixtures("fork_server")


@pytest.mark.parametrize("form", ["module", "code", "script"])
def test_it_finds_what_a_process_of_its_own_finds(form, tmp_path, monkeypatch):
    code = "import json, os, sys; print(json.dumps([sys.argv, sys.path, os.getcwd(), dict(os.environ), __name__]))"
    (tmp_path / "shown.py").write_text(code)
    word = {"module": ["-m", "shown"], "code": ["-c", code], "script": [tmp_path / "shown.py"]}[form]
    monkeypatch.setenv("OF_A_TEST", "1")
    monkeypatch.syspath_prepend("/of/a/test")
    environment = environment_of(SAID="so")
    del environment["OF_A_TEST"]
    forked, alone = (each(*word, "a b", folder=tmp_path, environment=environment) for each in (run, run_alone))
    assert alone.returncode == 0, alone.stderr
    assert forked.stdout == alone.stdout


def test_it_imports_this_project_by_its_own_path(tmp_path):
    assert run("-c", "import sys; print('monai_mil' in sys.modules)").stdout == "False\n"
    assert run("-c", "import monai_mil; print(monai_mil.__file__)").stdout == f"{ROOT / 'monai_mil' / '__init__.py'}\n"
    (tmp_path / "monai_mil").mkdir()
    (tmp_path / "monai_mil" / "__init__.py").write_text("print('another')")
    options = {"folder": tmp_path, "environment": environment_of(PYTHONPATH=tmp_path)}
    assert run("-c", "import monai_mil", **options).stdout == "another\n"


def test_every_fork_draws_its_own_random_numbers():
    code = (
        "import random, numpy, torch; from monai.transforms import Randomizable as R\n"
        "print(random.random(), numpy.random.random(), torch.rand(1).item(), R.R.random())"
    )
    one, other = (run("-c", code).stdout.split() for _ in range(2))
    assert len(one) == 4
    assert not set(one) & set(other)


def test_what_two_processes_write_at_once_is_all_kept():
    code = "import os; os.fork(); [os.write(1, b'one line of many\\n') for _ in range(20000)]"
    assert run("-c", code).stdout.count("one line of many\n") == 40000


def test_one_thread_is_forked():
    assert run("-c", "import os; print(len(os.listdir('/proc/self/task')))").stdout == "1\n"


@pytest.mark.parametrize(
    ("code", "returncode", "stderr"),
    [
        ("print('done')", 0, ""),
        ("raise SystemExit", 0, ""),
        ("import sys; print('done'); sys.exit(3)", 3, ""),
        ("import sys; sys.exit('no such file')", 1, "no such file\n"),
        ("import atexit; atexit.register(print, 'left'); 1 / 0", 1, "ZeroDivisionError"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
    ],
)
def test_it_ends_as_a_process_of_its_own_does(code, returncode, stderr):
    forked, alone = run("-c", code), run_alone("-c", code)
    assert forked.returncode == alone.returncode == returncode
    assert forked.stdout == alone.stdout
    assert stderr in forked.stderr
    assert bool(forked.stderr) == bool(stderr)


def test_it_can_be_killed_and_does_not_outlast_its_time():
    process = start("-c", "import time; print('begun', flush=True); time.sleep(60)")
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.result(timeout=0.5)
    assert process.wait(timeout=10) == -signal.SIGKILL


def test_the_ranks_of_a_run_know_each_other_and_one_that_fails_ends_the_other():
    code = (
        "import os, sys, time, torch.distributed as dist; dist.init_process_group('gloo')\n"
        "print(f'{dist.get_rank()} of {dist.get_world_size()} at {os.environ[\"LOCAL_RANK\"]}')\n"
        "dist.barrier(); dist.destroy_process_group()"
    )
    done = run_together("-c", code)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["0 of 2 at 0", "1 of 2 at 1"]
    begun = time.monotonic()
    done = run_together("-c", "import os, sys, time; os.environ['RANK'] == '0' and sys.exit(5); time.sleep(60)")
    assert done.returncode == 5
    assert time.monotonic() - begun < 50


@pytest.mark.parametrize(
    ("end", "code"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL)]
)
def test_a_launcher_s_python_is_a_fork_and_ends_as_it_does(tmp_path, end, code):
    environment = environment_of_launcher()
    program = "import os, signal, sys; print(os.getcwd(), sys.argv, 'monai' in sys.modules, flush=True);"
    command = [environment["PYTHON_EXEC"], "-u", "-c", program + end, "a b"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (code, f"{tmp_path} ['-c', 'a b'] True\n")


def test_a_launcher_s_python_that_is_told_to_end_ends_its_fork(tmp_path):
    environment = environment_of_launcher()
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    command = [environment["PYTHON_EXEC"], "-u", "-c", program]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as python:
        fork = int(python.stdout.readline())
        python.terminate()
        assert python.wait(timeout=60) == 128 + signal.SIGTERM
    assert not Path(f"/proc/{fork}").exists()


def test_a_kill_that_comes_too_late_is_no_error(monkeypatch):
    process = start("-c", "pass")
    assert process.wait(timeout=60) == 0
    process.returncode = None
    monkeypatch.setattr(process, "wait", lambda timeout: (_ for _ in ()).throw(subprocess.TimeoutExpired("", 0)))
    process.kill()
