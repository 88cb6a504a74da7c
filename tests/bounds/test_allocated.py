"""What other threads allocate does not change what a test measures."""

import queue
import threading
from email.message import Message

from smtpproxy.text.escaping import text_of
from tests.support.memory import Allocated


def test_only_memory_of_the_product_and_its_tests_counts() -> None:
    taken: queue.Queue[Message] = queue.Queue()
    over = threading.Event()

    def keep_allocating() -> None:
        while not over.wait(0.001):
            message = Message()
            for _ in range(100):
                message.add_header("X", "y" * 1000)  # a copy, made by the standard library
            taken.put(message)

    with Allocated() as allocated:
        thread = threading.Thread(target=keep_allocating)
        thread.start()
        for _ in range(20):
            taken.get()
        kept = [text_of(b"\x7f" * 25_000) for _ in range(10)]
        size = allocated.octets()
        over.set()
        thread.join()
    assert 1_000_000 < size < 1_010_000
    assert len(kept[0]) == 100_000
