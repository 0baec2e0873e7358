"""What the back-end must withstand: hostile front-ends, hostile guests, faulty callbacks.

Each test attacks one device of a process that serves two. After each, whatever it did: the
process lives, the other device (the witness) answers a read within a second, and the process
holds as many descriptors, mappings of guest memory and threads as before.

Words used in the tests' names and texts:

- *refused*: the message has no effect. Where an acknowledgement was asked for it is not zero and
  the connection goes on; otherwise the connection is closed.
- *dropped*: the connection is closed; the listener takes the next front-end.
- *broken*: one queue takes no more buffers and signals its error descriptor; a stop and a new
  set-up bring it back.
- *failed*: the request completes with an error status.
- *returned empty*: the chain comes back with a used length of 0 and nothing is written.

Loops that are a hundred thousand turns long in earnest are shortened so that the suite ends in
minutes; `VHOST_USER_SOAK=1` in the environment gives them their full length.
"""
