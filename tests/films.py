"""Small mp4 files whose frames are one grey and whose sound is known, written by PyAV."""

from fractions import Fraction

import numpy as np

CLOCK = 12800  # time stamps a second


def film(path, greys, *, stamps=None, fps=25, size=(64, 48), sound=None, rate=16000, shapes=None, options=()):
    """greys: of each frame, or arrays (H, W, 3) uint8; None: no pictures. stamps: seconds at which each is shown
    (default: at `fps`). sound: (samples, channels) in [-1, 1]; None: no sound. options: of the muxer."""
    import av

    with av.open(str(path), "w", options=dict(options)) as container:
        video = audio = None
        if greys is not None:
            video = container.add_stream("libx264", rate=fps, options={"crf": "10"})
            video.width, video.height, video.pix_fmt = *size, "yuv420p"
            video.codec_context.gop_size = 12
            video.codec_context.time_base = Fraction(1, CLOCK)
        if sound is not None:
            layout = {1: "mono", 2: "stereo"}[sound.shape[1]]
            audio = container.add_stream("aac", rate=rate, layout=layout)
        for i, grey in enumerate(() if greys is None else greys):
            pixels = np.full((size[1], size[0], 3), grey, np.uint8) if np.isscalar(grey) else grey
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(format="yuv420p", threads=1)  # others do not survive a fork
            frame.pts, frame.time_base = round(CLOCK * (stamps[i] if stamps else i / fps)), Fraction(1, CLOCK)
            container.mux(video.encode(frame))
        if sound is not None:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound.T, np.float32), "fltp", layout)
            frame.sample_rate, frame.pts = rate, 0
            container.mux(audio.encode(frame))
        for stream in (video, audio):
            if stream is not None:
                container.mux(stream.encode(None))
    return path


def turn(path, a, b, c, d):
    """Write a display matrix into the head of the (first) track of pictures: (x, y) goes to (a x + c y, b x + d y)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 5 * 4 + 8 + 8  # version and flags, five numbers, eight bytes, four short ones
    matrix = np.array([a, b, 0, c, d, 0, 0, 0, 2**14]) * 2**16
    data[at : at + 36] = matrix.astype(">i4").tobytes()
    path.write_bytes(data)
    return path


def clip(path, video, audio, sound, rate, *, starts=(0.0, 0.0), fps=25, options=(), gap=None):
    """A video with pictures of grey 5 i, of any codecs; no pictures for None. sound: (n, 1). starts: seconds at which
    pictures and sound begin. gap: sample from which on the sound comes half a second later."""
    import av

    with av.open(str(path), "w", options=dict(options)) as container:
        streams = [container.add_stream(video, rate=fps)] if video else []
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt, stream.codec_context.thread_count = 64, 48, "yuv420p", 1
        streams.append(container.add_stream(audio, rate=rate, layout="mono"))
        for i in range(len(sound) * fps // rate if video else 0):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 5 * i % 256, np.uint8), format="rgb24")
            frame = frame.reformat(format="yuv420p", threads=1)
            frame.pts, frame.time_base = i + round(starts[0] * fps), Fraction(1, fps)
            container.mux(streams[0].encode(frame))
        for first in range(0, len(sound), 1000):
            part = np.ascontiguousarray(sound[first : first + 1000].T, np.float32)
            frame = av.AudioFrame.from_ndarray(part, "fltp", "mono")
            frame.sample_rate, frame.pts = rate, first + round(starts[1] * rate)
            frame.pts += rate // 2 if gap is not None and first >= gap else 0
            container.mux(streams[-1].encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    return path
