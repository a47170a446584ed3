//! Standard streams of WASI guests: buffers between the guest and the driving process.
//!
//! Nothing here waits or delivers. A guest that finds no input leaves a note of it, and output
//! gathers until the driving process takes it: see [`crate::wasi`]. Invariant: a lock is held for
//! a copy of bytes, and no other is taken meanwhile.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use parking_lot::Mutex;
use rustler::{Atom, Decoder, NifResult, Term};
use tokio::io::{AsyncRead, AsyncWrite};
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdinStream, StdoutStream};
use wasmtime_wasi::p2::pipe::{ClosedInputStream, SinkOutputStream};
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

use crate::{atoms, text};

/// The streams, by their file descriptors.
pub const STREAMS: usize = 3;
pub const STDIN: usize = 0;
pub const STDOUT: usize = 1;
pub const STDERR: usize = 2;

/// How many bytes one call of the guest's may have the host copy.
pub const MAX_COPY: usize = 128 * 1024 * 1024;

/// The same on all systems that there are.
const ENOSPC: i32 = 28;

/// The buffers between a guest's standard streams and the driving process.
pub struct Stdio {
    input: Mutex<Input>,
    outputs: [Mutex<Output>; 2],
    terminal: bool,
}

struct Input {
    bytes: Bytes,
    ended: bool,
    /// The guest has found it empty.
    wanted: bool,
}

struct Output {
    bytes: Vec<u8>,
    sink: Sink,
    /// What is there is all that there will be.
    ending: bool,
}

/// Where a guest's output goes.
#[derive(Clone, Copy)]
pub enum Sink {
    Nowhere,
    /// Delivered as it comes, but for characters that are not complete yet.
    Text,
    /// Delivered as it comes.
    Bytes,
    /// Kept, up to this many bytes.
    Kept(usize),
}

impl<'a> Decoder<'a> for Sink {
    fn decode(term: Term<'a>) -> NifResult<Self> {
        if let Ok(limit) = term.decode::<usize>() {
            return Ok(Sink::Kept(limit));
        }
        let sink: Atom = term.decode()?;
        if sink == atoms::text() {
            Ok(Sink::Text)
        } else if sink == atoms::binary() {
            Ok(Sink::Bytes)
        } else if sink == atoms::nil() {
            Ok(Sink::Nowhere)
        } else {
            Err(rustler::Error::BadArg)
        }
    }
}

impl Stdio {
    /// `input` is all that there is, or None where it is to be asked for.
    pub fn new(input: Option<&[u8]>, stdout: Sink, stderr: Sink, terminal: bool) -> Self {
        let output = |sink| Mutex::new(Output { bytes: Vec::new(), sink, ending: false });
        let ended = input.is_some();
        let bytes = Bytes::copy_from_slice(input.unwrap_or_default());
        Stdio {
            input: Mutex::new(Input { bytes, ended, wanted: false }),
            outputs: [output(stdout), output(stderr)],
            terminal,
        }
    }

    fn output(&self, stream: usize) -> &Mutex<Output> {
        &self.outputs[usize::from(stream == STDERR)]
    }

    /// Whether the guest has found no input since this was last asked.
    pub fn wants_input(&self) -> bool {
        std::mem::take(&mut self.input.lock().wanted)
    }

    /// Whether there is something to be delivered.
    pub fn has_output(&self, stream: usize) -> bool {
        self.output(stream).lock().ready() > 0
    }

    pub fn is_empty(&self) -> bool {
        self.outputs.iter().all(|output| output.lock().bytes.is_empty())
    }

    /// Nothing comes after what the guest has written so far.
    pub fn end(&self) {
        for output in &self.outputs {
            let mut output = output.lock();
            output.ending = !output.bytes.is_empty();
        }
    }

    /// What can be delivered, or was kept.
    pub fn take(&self, stream: usize) -> Vec<u8> {
        let mut output = self.output(stream).lock();
        let length = match output.sink {
            Sink::Kept(_) => output.bytes.len(),
            _ => output.ready(),
        };
        output.ending = false;
        let rest = output.bytes.split_off(length);
        std::mem::replace(&mut output.bytes, rest)
    }

    /// Gives the guest input. No bytes are the end of it.
    pub fn feed(&self, bytes: &[u8]) {
        let mut input = self.input.lock();
        input.ended = bytes.is_empty();
        input.bytes = Bytes::copy_from_slice(bytes);
    }
}

impl Output {
    /// How many bytes can be delivered.
    fn ready(&self) -> usize {
        match self.sink {
            Sink::Nowhere | Sink::Kept(_) => 0,
            Sink::Text if !self.ending => text::complete(&self.bytes),
            Sink::Text | Sink::Bytes => self.bytes.len(),
        }
    }
}

/// A stream as wasmtime-wasi sees it.
pub struct Stream {
    stdio: Arc<Stdio>,
    number: usize,
}

impl Stream {
    pub fn new(stdio: &Arc<Stdio>, number: usize) -> Self {
        Stream { stdio: stdio.clone(), number }
    }
}

impl IsTerminal for Stream {
    fn is_terminal(&self) -> bool {
        self.stdio.terminal
    }
}

impl StdinStream for Stream {
    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(Stream::new(&self.stdio, self.number))
    }

    // Asked for by later previews only.
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        StdinStream::async_stream(&ClosedInputStream)
    }
}

impl StdoutStream for Stream {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(Stream::new(&self.stdio, self.number))
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        StdoutStream::async_stream(&SinkOutputStream)
    }
}

#[async_trait]
impl Pollable for Stream {
    async fn ready(&mut self) {
        if self.number != STDIN {
            return;
        }
        poll_fn(|_| {
            let mut input = self.stdio.input.lock();
            input.wanted = input.bytes.is_empty() && !input.ended;
            if input.wanted { Poll::Pending } else { Poll::Ready(()) }
        })
        .await
    }
}

#[async_trait]
impl InputStream for Stream {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        let mut input = self.stdio.input.lock();
        if input.bytes.is_empty() && input.ended {
            return Err(StreamError::Closed);
        }
        let size = size.min(input.bytes.len());
        Ok(input.bytes.split_to(size))
    }
}

#[async_trait]
impl OutputStream for Stream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let mut output = self.stdio.output(self.number).lock();
        match output.sink {
            Sink::Nowhere => return Ok(()),
            Sink::Kept(limit) if output.bytes.len() + bytes.len() > limit => {
                let full = std::io::Error::from_raw_os_error(ENOSPC);
                return Err(StreamError::LastOperationFailed(full.into()));
            }
            _ => {}
        }
        output.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(MAX_COPY)
    }
}
