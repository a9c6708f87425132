"""What the launcher decides to start, without starting it."""

import pytest

from src.common.cli import UsageError
from src.launch.launch_plan import absolute_paths, make_plan
from src.launch.worker import share_of_cores
from src.parameters import PARAMETERS, path_parameters
from tests.support.launcher import PAIR, write_table


class TestPlan:
    def plan(self, tmp_path, *servers, flags=(), **environment):
        environment.setdefault("DEVICE_TARGET", "Ascend")
        path = write_table(tmp_path / "table.json", *servers)
        return make_plan([path, "data", *flags], environment, "/code/train.py")

    @pytest.fixture(autouse=True)
    def data(self, tmp_path, monkeypatch):
        (tmp_path / "data").mkdir()
        monkeypatch.chdir(tmp_path)

    @pytest.fixture(autouse=True)
    def sixteen_cores(self, monkeypatch):
        monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)))

    def test_eight_devices_form_a_dynamic_cluster(self, tmp_path):
        """As msrun starts it; a rank table in the environment would give MindSpore another back end."""
        plan = self.plan(tmp_path, ("127.0.0.1", [(number, number) for number in range(8)]), MASTER_PORT="9000")
        assert [rank.folder for rank in plan.ranks] == [f"{tmp_path}/train_parallel{rank}" for rank in range(8)]
        cluster = {"MS_SCHED_HOST": "127.0.0.1", "MS_SCHED_PORT": "9000", "MS_WORKER_NUM": "8"}
        for number, rank in enumerate(plan.ranks):
            expected = {"RANK_ID": str(number), "DEVICE_ID": str(number), "RANK_SIZE": "8", **cluster}
            expected |= {"MS_ROLE": "MS_WORKER", "MS_NODE_ID": str(number), "MS_TOPO_TIMEOUT": "600"}
            assert rank.variables == {**expected, "OMP_NUM_THREADS": "2"}
            assert rank.log == f"{rank.folder}/log.txt"
        assert cluster.items() <= plan.scheduler.variables.items()
        assert plan.scheduler.variables["MS_ROLE"] == "MS_SCHED"

    def test_the_old_start_gives_what_the_model_zoo_gives(self, tmp_path):
        devices = [(number, 7 - number) for number in range(8)]
        plan = self.plan(tmp_path, ("127.0.0.1", devices), RANK_SIZE="8", LAUNCH="rank_table", BIND_CORES="0")
        assert plan.scheduler is None
        for number, rank in enumerate(plan.ranks):
            expected = {"RANK_ID": str(number), "DEVICE_ID": str(7 - number), "RANK_SIZE": "8"}
            assert rank.variables == {**expected, "RANK_TABLE_FILE": f"{tmp_path}/table.json"}
            assert rank.cores is None

    def test_each_rank_has_its_share_of_the_cores(self, tmp_path):
        for start in ("cluster", "rank_table"):
            plan = self.plan(tmp_path, PAIR, LAUNCH=start)
            assert [rank.cores for rank in plan.ranks] == [set(range(8)), set(range(8, 16))]
            assert plan.ranks[1].variables["OMP_NUM_THREADS"] == "8"

    def test_cards_that_are_not_numbered_from_0_are_shown_alone(self, tmp_path):
        """The dynamic cluster numbers a server's devices from 0 in the order of its ranks, whatever DEVICE_ID says."""
        plan = self.plan(tmp_path, ("127.0.0.1", [(4, 0), (6, 1)]))
        assert [rank.variables["ASCEND_RT_VISIBLE_DEVICES"] for rank in plan.ranks] == ["4,6"] * 2
        assert [rank.variables["DEVICE_ID"] for rank in plan.ranks] == ["0", "1"]
        assert "ASCEND_RT_VISIBLE_DEVICES" not in self.plan(tmp_path, PAIR).ranks[0].variables

    def test_cards_that_do_not_rise_with_the_ranks_need_the_old_start(self, tmp_path):
        servers = ("127.0.0.1", [(1, 0), (0, 1)])
        with pytest.raises(UsageError, match="gives server 127.0.0.1 the devices 1, 0 in the order of its ranks"):
            self.plan(tmp_path, servers)
        assert len(self.plan(tmp_path, servers, LAUNCH="rank_table").ranks) == 2
        assert len(self.plan(tmp_path, servers, DEVICE_TARGET="CPU").ranks) == 2

    def test_a_server_starts_only_its_own_ranks(self, tmp_path):
        servers = ("10.0.0.1", [(0, 0), (1, 1)]), ("10.0.0.2", [(4, 2), (5, 3)])
        plan = self.plan(tmp_path, *servers, SERVER_ID="10.0.0.2")
        found = [(rank.variables["RANK_ID"], rank.variables["ASCEND_RT_VISIBLE_DEVICES"]) for rank in plan.ranks]
        assert found == [("2", "4,5"), ("3", "4,5")]
        assert {rank.variables["RANK_SIZE"] for rank in plan.ranks} == {"4"}

    @pytest.mark.parametrize("target", ["CPU", "Ascend"])
    def test_the_server_of_rank_0_runs_the_scheduler(self, tmp_path, target):
        servers = ("10.0.0.1", [(0, 2), (1, 3)]), ("10.0.0.2", [(0, 0), (1, 1)])
        for server, has_scheduler in (("10.0.0.1", False), ("10.0.0.2", True)):
            plan = self.plan(tmp_path, *servers, SERVER_ID=server, DEVICE_TARGET=target, MASTER_PORT="9000")
            assert (plan.scheduler is not None) == has_scheduler
            for worker in plan.workers:
                variables = worker.variables
                assert (variables["MS_SCHED_HOST"], variables["MS_SCHED_PORT"]) == ("10.0.0.2", "9000")
                assert variables["MS_WORKER_NUM"] == "4"
                assert variables["MS_ROLE"] == ("MS_SCHED" if worker is plan.scheduler else "MS_WORKER")
            assert [rank.variables["MS_NODE_ID"] for rank in plan.ranks] == ["0", "1"] if has_scheduler else ["2", "3"]

    def test_flags_are_passed_on_after_the_launchers_own(self, tmp_path):
        plan = self.plan(tmp_path, PAIR, flags=["--batch_size", "8", "--lr_max=0.1"])
        assert plan.ranks[1].command[1:] == (
            *("-u", "/code/train.py", "--run_distribute", "True", "--device_target", "Ascend"),
            *("--dataset_path", f"{tmp_path}/data", "--batch_size", "8", "--lr_max=0.1"),
            *("--save_checkpoint_path", f"{tmp_path}/checkpoint"),
        )

    def test_device_target_among_the_flags_counts_too(self, tmp_path):
        assert self.plan(tmp_path, PAIR, flags=["--device_target", "CPU"], DEVICE_TARGET="").target == "CPU"

    @pytest.mark.parametrize(
        "environment, sentence",
        [
            ({"RANK_SIZE": "8"}, "RANK_SIZE is 8, but the rank table .* lists 2 ranks"),
            ({"DEVICE_TARGET": "GPU"}, "DEVICE_TARGET is 'GPU'; a rank table starts ranks on Ascend or CPU"),
            ({"DEVICE_TARGET": "CPU", "MASTER_PORT": "x"}, "MASTER_PORT is 'x', not a port number"),
            ({"DEVICE_TARGET": "CPU", "MASTER_PORT": "65536"}, "MASTER_PORT is '65536', not a port number"),
            ({"LAUNCH": "msrun"}, "LAUNCH is 'msrun'; ranks are started by cluster .* or by rank_table"),
            ({"LAUNCH": "rank_table", "DEVICE_TARGET": "CPU"}, "LAUNCH=rank_table is for Ascend; ranks on the CPU are"),
            ({"flags": ["--device_id", "1"]}, "--device_id cannot be among the further flags: the rank table gives"),
            ({"flags": ["--run_distribute=False"]}, "--run_distribute cannot be among the further flags"),
            ({"flags": ["--dataset_path", "x"]}, "--dataset_path cannot be among the further flags: it is DATA_DIR"),
        ],
    )
    def test_wrong_settings_are_one_sentence(self, tmp_path, environment, sentence):
        with pytest.raises(UsageError, match=sentence):
            self.plan(tmp_path, PAIR, **environment)

    def test_without_an_npu_the_cpu_has_to_be_asked_for(self, tmp_path, monkeypatch):
        monkeypatch.setattr("glob.glob", lambda pattern: [])
        with pytest.raises(
            UsageError, match="there is no NPU on this server .*; DEVICE_TARGET=CPU starts the ranks on"
        ):
            self.plan(tmp_path, PAIR, DEVICE_TARGET="")
        monkeypatch.setattr("glob.glob", lambda pattern: ["/dev/davinci0"])
        assert self.plan(tmp_path, PAIR, DEVICE_TARGET="").target == "Ascend"


def test_paths_among_the_flags_stay_the_callers():
    flags = ["--resume", "auto", "--pretrained", "a.ckpt", "--eval_dataset_path=val", "--opt", "sgd"]
    assert absolute_paths([*flags, "--save_checkpoint_path", "/out"], "/here") == [
        *["--resume", "auto", "--pretrained", "/here/a.ckpt", "--eval_dataset_path=/here/val", "--opt", "sgd"],
        *["--save_checkpoint_path", "/out"],
    ]


def test_every_path_that_train_py_takes_is_known_to_the_launcher():
    paths = {name for name in PARAMETERS if name.endswith(("_path", "resume", "pretrained"))}
    assert paths == set(path_parameters())
    for name in paths:
        assert absolute_paths([f"--{name}", "there/it"], "/here")[:2] == [f"--{name}", "/here/there/it"]


def test_the_name_of_published_weights_is_no_path():
    for flags in (["--pretrained", "b0"], ["--pretrained=tf_efficientnet_b0.ns_jft_in1k"]):
        assert absolute_paths(flags, "/here") == [*flags, "--save_checkpoint_path", "/here/checkpoint"]


def test_cores_are_shared_out_once_or_not_at_all(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {2, 3, 5, 7, 11})
    assert [share_of_cores(rank, 2) for rank in range(2)] == [{2, 3}, {5, 7, 11}]
    assert share_of_cores(0, 6) is None
