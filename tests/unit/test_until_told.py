"""Signals that end a command: heard whatever the main thread is at, the wait for them among it."""

import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).parents[2]

MANY = """
import random, signal, sys, time
from harness import until_told as module
dice = random.Random(int(sys.argv[1]))
ours, module.SIGNALS = module.SIGNALS, (signal.SIGALRM,)  # one that the kernel sends without anybody's thread
for _ in range(2000):
    told = module.until_told()
    signal.setitimer(signal.ITIMER_REAL, dice.uniform(0.00001, 0.0005))
    while not told(0):
        pass
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
print("all heard", flush=True)
module.SIGNALS = ours
told = module.until_told()
print(told(0), flush=True)
print(told(None), flush=True)
time.sleep(60)
"""


def test_a_signal_in_the_middle_of_the_wait_is_heard_and_a_second_one_ends_the_process():
    """2000 times, the wait being asked again and again: a handler that took a lock of the wait's would hang here."""
    words = [sys.executable, "-c", MANY, str(random.randrange(1000))]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        try:
            assert process.stdout.readline() == "all heard\n"
            assert process.stdout.readline() == "False\n"
            process.send_signal(signal.SIGTERM)
            assert process.stdout.readline() == "True\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait() == -signal.SIGTERM
        finally:
            watchdog.cancel()
            process.kill()
