//! What is kept of the operating system's memory for others, when it is given back.

/// Memories up to this many bytes may be filled with zeros where they lie and keep their physical
/// memory: it is faster than having the system do it. Of longer ones it is given back.
pub const SHORT: usize = 128 * 1024;

/// Things of one kind, each as good as the other. The warm ones have physical memory already.
pub struct Spares<T> {
    warm: Vec<T>,
    cold: Vec<T>,
}

impl<T> Default for Spares<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Spares<T> {
    pub const fn new() -> Self {
        Spares { warm: Vec::new(), cold: Vec::new() }
    }

    pub fn take(&mut self) -> Option<T> {
        self.warm.pop().or_else(|| self.cold.pop())
    }

    pub fn take_warm(&mut self) -> Option<T> {
        self.warm.pop()
    }

    /// Takes one that is missed least.
    pub fn take_least(&mut self) -> Option<T> {
        self.cold.pop().or_else(|| self.warm.pop())
    }

    pub fn give_warm(&mut self, spare: T) {
        self.warm.push(spare);
    }

    pub fn give_cold(&mut self, spare: T) {
        self.cold.push(spare);
    }

    pub fn warm(&self) -> usize {
        self.warm.len()
    }

    pub fn cold(&self) -> usize {
        self.cold.len()
    }

    pub fn is_empty(&self) -> bool {
        self.warm.is_empty() && self.cold.is_empty()
    }
}
