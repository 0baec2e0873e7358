"""A device that answers in any order, as the text of a program of its own."""

SHUFFLING = '''
import os, random, threading
import vhost_user as vu

class Shuffling(vu.BlockDevice):
    """Keeps requests, and carries them out and answers them in any order."""

    def __init__(self, num_queues=1):
        self.fd = os.open("disk.img", os.O_RDWR)
        super().__init__(size=os.fstat(self.fd).st_size, num_queues=num_queues)
        self.kept, self.news = [], threading.Condition()
        threading.Thread(target=self.work, daemon=True).start()

    def on_batch(self, batch):
        with self.news:
            self.kept += [request.defer() for request in batch]
            self.news.notify()

    def work(self):
        while True:
            with self.news:
                self.news.wait_for(lambda: len(self.kept) > 4, timeout=0.01)
                request = self.kept.pop(random.randrange(len(self.kept))) if self.kept else None
            if request:
                request.pwritev(self.fd) if request.op == "write" else request.preadv(self.fd)
                request.complete()


'''
"""Serves ``disk.img`` of its folder; the program says where."""
