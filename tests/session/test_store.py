"""Readers never see half a scene, and a slot holds the newest request only."""

import threading

import torch

from faithfusion_studio.session.store import LatestSlot, SceneStore


def run_readers_against_a_writer(tools, *, clone):
    """4 readers; the writer steps its parameters in place and publishes; counts torn reads."""
    from dataclasses import replace

    scene = tools.scene(n=20_000)
    parameters = torch.zeros(20_000, 3)
    store = SceneStore(scene)
    stop, torn, reads, lock = threading.Event(), [0], [0], threading.Lock()

    def read():
        while not stop.is_set():
            means = store.latest().scene.background.means
            first = float(means[0, 0])
            broken = not bool((means == first).all())
            with lock:
                reads[0] += 1
                torn[0] += broken

    def publish(means):
        store.publish(replace(scene, background=replace(scene.background, means=means)))

    threads = [threading.Thread(target=read) for _ in range(4)]
    publish(parameters.clone() if clone else parameters)
    for thread in threads:
        thread.start()
    step = 0
    while reads[0] < 300 or step < 100:
        step += 1
        for begin in range(0, 20_000, 2_000):  # a write that a reader can fall into
            parameters[begin : begin + 2_000] += 1
        publish(parameters.clone() if clone else parameters)
    stop.set()
    for thread in threads:
        thread.join()
    return torn[0]


def test_four_readers_and_one_writer_make_no_torn_read(tools):
    assert run_readers_against_a_writer(tools, clone=True) == 0


def test_the_torn_read_check_notices_a_writer_that_does_not_clone(tools):
    assert run_readers_against_a_writer(tools, clone=False) > 0


def test_versions_rise_by_one_and_latest_is_the_newest(tools):
    store = SceneStore(tools.scene())
    versions = [store.latest().version] + [store.publish(tools.scene(), s).version for s in (5, 6)]
    assert versions == [1, 2, 3]
    assert (store.latest().version, store.latest().step) == (3, 6)


def test_waiting_ends_with_a_newer_snapshot_or_with_none(tools):
    store = SceneStore(tools.scene())
    assert store.wait_newer(1, timeout=0.01) is None
    thread = threading.Timer(0.02, store.publish, args=(tools.scene(),))
    thread.start()
    assert store.wait_newer(1, timeout=tools.timeout).version == 2
    thread.join()


def test_a_slot_keeps_only_the_newest_request():
    slot = LatestSlot()
    slot.put(1)
    slot.put(2)
    assert slot.get(timeout=0.01) == 2
    assert slot.get(timeout=0.01) is None


def test_closing_a_slot_dismisses_whoever_waits(tools):
    slot, got = LatestSlot(), []
    thread = threading.Thread(target=lambda: got.append(slot.get()))
    thread.start()
    slot.close()
    thread.join(tools.timeout)
    assert got == [None]
    slot.put(3)
    assert slot.get(timeout=0.01) is None
