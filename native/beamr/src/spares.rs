//! What is kept of the operating system's memory for others, when it is given back.

/// Things of one kind, each as good as the other. The warm ones have physical memory already.
pub struct Spares<T> {
    warm: Vec<T>,
    cold: Vec<T>,
}

impl<T> Default for Spares<T> {
    fn default() -> Self {
        Spares { warm: Vec::new(), cold: Vec::new() }
    }
}

impl<T> Spares<T> {
    pub fn take(&mut self) -> Option<T> {
        self.warm.pop().or_else(|| self.cold.pop())
    }

    /// Takes one that is missed least.
    pub fn take_cold(&mut self) -> Option<T> {
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

    pub fn count(&self) -> usize {
        self.warm.len() + self.cold.len()
    }
}
