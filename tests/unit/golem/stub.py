"""A runtime that knows no posemesh: golden frames with the numbers put in. Run as a program, it misbehaves as told."""

import json
import os
import signal
import subprocess
import sys
import time

OUT = os.dup(1)
pending = b""


def size(number):
    out = b""
    while number > 0x7F:
        out += bytes((number & 0x7F | 0x80,))
        number >>= 7
    return out + bytes((number,))


def send(*frames):
    data = memoryview(b"".join(size(len(each)) + each for each in frames))
    while data:
        data = data[os.write(OUT, data) :]


def hello(id):
    return bytes((0x10, id)) + bytes.fromhex("22070a05312e322e33")


def ran(id, pid):
    return bytes((0x10, id, 0x52, 0x02, 0x08, pid))


def error(id, code, text):
    inner = bytes((0x08, code, 0x12, len(text))) + text.encode()
    return bytes((0x10, id, 0x1A, len(inner))) + inner


def done(id, field):
    return bytes((0x10, id, field, 0x00))


def event(pid, rest, id=b""):
    inner = bytes((0x08, pid)) + rest
    return b"\x08\x01" + id + b"\xa2\x01" + size(len(inner)) + inner


def started(pid):
    return event(pid, b"\x10\x01")


def wrote(pid, data, field=0x22, running=b"\x10\x01"):
    return event(pid, running + bytes((field,)) + size(len(data)) + data)


def exited(pid, code=0):
    return event(pid, bytes((0x18, code)) if code else b"")


COUNTER = bytes.fromhex("0801aa011a12180a0d") + b"golem.usage.c" + bytes.fromhex("110000000000000440")
STATE = bytes.fromhex("0801aa011f0a1d0a0273741217") + b'{"a":[true,null],"b":1}'
NETWORK = bytes.fromhex("f201101a0e") + b"127.0.0.1:5000"


def take():
    """The next request's bytes."""
    global pending
    while True:
        length = shift = at = 0
        while at < len(pending):
            length |= (pending[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if pending[at - 1] < 0x80:
                if len(pending) >= at + length:
                    found, pending = pending[at : at + length], pending[at + length :]
                    return found
                break
        more = os.read(0, 65536)
        if not more:
            sys.exit(0)
        pending += more


def texts(data):
    """The strings of a message, in order."""
    found = []
    while data and data[0] in (0x0A, 0x12):
        length, shift, at = 0, 0, 1
        while True:
            length |= (data[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if data[at - 1] < 0x80:
                break
        found.append(data[at : at + length].decode())
        data = data[at + length :]
    return found


def run(id, pid, data):
    while data[0] > 0x7F:  # the length of what follows
        data = data[1:]
    program, _name, *args = texts(data[1:])
    match program.rpartition("/")[2]:
        case "echo":
            send(ran(id, pid), started(pid), wrote(pid, " ".join(args).encode()), exited(pid))
        case "both":  # one frame with the two of them, and one that ends it with a last word
            both = b"\x10\x01\x22\x01a\x2a\x01b"
            send(ran(id, pid), event(pid, both), wrote(pid, b"end", running=b""))
        case "fail":
            send(ran(id, pid), started(pid), wrote(pid, b"no\n", 0x2A), exited(pid, 3))
        case "early":  # its reply comes last, as it may
            send(started(pid), wrote(pid, b"early"), exited(pid, 4), ran(id, pid))
        case "numbered":  # events with the request's id in them
            send(ran(id, pid), event(pid, b"\x10\x01\x22\x01x", bytes((0x10, id))), event(pid, b"", bytes((0x10, id))))
        case "late":  # what nobody should say any more
            send(ran(id, pid), started(pid), exited(pid), wrote(pid, b"late"), exited(pid, 9))
        case "usage":
            send(ran(id, pid), started(pid), COUNTER, STATE, exited(pid))
        case "copy":  # the task's files, with its arguments as one of them
            send(ran(id, pid), started(pid), COUNTER, STATE, wrote(pid, b'{"event": "copied"}\nplain\n'))
            copy(args)
            send(exited(pid))
        case "sleep":
            send(ran(id, pid), started(pid))
        case "nap":
            send(ran(id, pid), started(pid), wrote(pid, b"zzz\n"))
        case "twice":
            send(ran(id, 1), started(1))
        case "refuse":
            send(error(id, 1, "Not supported"))
        case "die":
            sys.stderr.write("it broke\n")
            sys.stderr.flush()
            os._exit(7)
        case "crash":
            send(ran(id, pid), started(pid), wrote(pid, b"half"))
            os.kill(os.getpid(), signal.SIGKILL)
        case "mute":
            pass
        case "slow":
            time.sleep(float(args[0]))
            send(ran(id, pid), started(pid))
        case "text":
            os.write(OUT, b"log: something happened, and it is told here\n")
        case "garbage":
            os.write(OUT, b"\xff" * 12)
        case "wrong":
            send(hello(id))
        case "close":
            os.close(OUT)
            os.close(1)
            time.sleep(1000)
        case "flood":
            send(ran(id, pid), started(pid))
            while True:
                send(wrote(pid, b"x" * 49152))
        case "unasked":
            while True:
                send(wrote(99, b"x" * 49152))
        case "bytes":
            count, piece = int(args[0]), int(args[1])
            send(ran(id, pid), started(pid))
            for _ in range(0, count, piece):
                send(wrote(pid, b"x" * piece))
            send(exited(pid))


def copy(args):
    os.makedirs("vol-out/more", exist_ok=True)
    for name in os.listdir("vol-in"):
        if os.path.isfile(f"vol-in/{name}"):
            with open(f"vol-in/{name}", "rb") as source, open(f"vol-out/more/{name}", "wb") as target:
                target.write(source.read().upper())
    with open("vol-out/args", "w") as file:
        json.dump([os.getpid(), *args], file)


def serve(be):
    if be == "die":
        sys.exit("cannot start")
    if be == "text":
        os.write(OUT, b"starting up\n")
        time.sleep(1000)
    if be == "mute":
        time.sleep(1000)
    if be == "flood":
        while True:
            os.write(OUT, b"\x00" * 65536)
    send(wrote(0, b'{"exampleProperty":"running"}'))
    subprocess.Popen(["sleep", "1000"], start_new_session=True, stdout=subprocess.DEVNULL)
    pid = 0
    while True:
        request = take()
        id, key, rest = request[1], request[2], request[3:]
        if key == 0x12:
            send(hello(id))
            if be == "brief":
                signal.setitimer(signal.ITIMER_REAL, 0.1)
        elif key == 0x52:
            pid += 1
            run(id, pid, rest)
        elif key == 0x5A and be == "unkillable":
            send(error(id, 1, "Not supported"))
        elif key == 0x5A:
            sys.stderr.write(f"kill {rest[2]}\n")
            sys.stderr.flush()
            send(done(id, 0x5A), exited(rest[2], 1))
        elif key == 0x62:
            if be == "stubborn":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                time.sleep(1000)
            send(error(id, 1, "cannot stop") if be == "unstoppable" else done(id, 0x62))
        else:
            send(bytes((0x10, id)) + NETWORK)


def main():
    argv = sys.argv[1:]
    be = argv[argv.index("--be") + 1] if "--be" in argv else ""
    step = next(each for each in argv if each in ("test", "offer-template", "deploy", "start", "run"))
    rest = argv[argv.index(step) + 1 :]
    if os.environ.get("STUB_ARGV"):
        with open(os.environ["STUB_ARGV"], "a") as file:
            file.write(json.dumps([*argv, os.getcwd()]) + "\n")
    if be == f"{step} hangs":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
        time.sleep(1000)
    if be == f"{step} fails":
        sys.exit("it does not work here")
    if be == f"{step} floods":
        while True:
            os.write(1, b"x" * 65536)
    if be.startswith(f"{step} says "):
        sys.stdout.write(be.removeprefix(f"{step} says "))
    elif step == "deploy":
        mode = "empty" if be == "command" else "blocking"
        vols = [{"name": "vol-in", "path": "/in"}, {"name": "vol-out", "path": "/out"}]
        json.dump({"startMode": mode, "valid": {"Ok": "ready"}, "vols": vols, "more": 1}, sys.stdout)
    elif step == "offer-template":
        sys.stdout.write('{"constraints":"","properties":{"a.b":1}}')
    elif step == "start" and be == "command":
        sys.stdout.write("{}")
    elif step == "start":
        serve(be)
    elif step == "run" and rest[1] == "copy":
        sys.stdout.write('{"event": "copied"}\n')
        copy(rest[3:])
    elif step == "run":
        entrypoint, _, *args = rest[1:]
        os.execvp(entrypoint, [entrypoint, *args])


main()
