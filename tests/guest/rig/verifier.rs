//! Writes to a disk and reads it back without end, past all caches, and checks all that was read.
//!
//!     verifier run DEVICE DIRECTORY    until DIRECTORY/stop is there
//!     verifier check IMAGE TABLE       whether an image has what was written last
//!
//! The disk is cut into blocks. Of each a thread knows how often it has written it, and that number
//! is in all its words: a block that is older than it should be, or another one, is told by any of
//! its words. What was read stays in memory, where nothing but the disk ever writes, and is checked
//! over and over: a page that a host has lost shows later, too.
//!
//! `run` writes `progress` (requests so far) to the directory, `longest` (microseconds that the
//! longest request took since that file was removed), and at its end `table` (how often each block
//! was written) or `failed` (what was wrong).

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const BLOCK: usize = 16 << 10;
const BLOCKS: usize = 512;
const THREADS: usize = 8;
/// Blocks that a thread has read and keeps.
const KEPT: usize = 16;
/// So many requests lie between two flushes of a thread.
const FLUSH_EVERY: u64 = 64;
const O_DIRECT: i32 = 0x4000;
const ALIGNMENT: usize = 4096;
const LOOK: Duration = Duration::from_millis(20);

/// A block of the disk in memory that direct I/O takes.
struct Block {
    memory: Vec<u8>,
    start: usize,
    /// Which block of the disk it is, and how often that was written.
    number: usize,
    version: u32,
}

impl Block {
    fn new() -> Self {
        let memory = vec![0; BLOCK + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Self { memory, start, number: 0, version: 0 }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + BLOCK]
    }

    fn fill(&mut self, number: usize, version: u32) {
        (self.number, self.version) = (number, version);
        for (place, word) in self.bytes().chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&expected(number, version, place).to_le_bytes());
        }
    }

    /// Checks each word; what is wrong, if anything is.
    fn check(&mut self, when: &str) -> Result<(), String> {
        let (number, version) = (self.number, self.version);
        for (place, word) in self.bytes().chunks_exact(8).enumerate() {
            let found = u64::from_le_bytes(word.try_into().expect("eight bytes"));
            let wanted = expected(number, version, place);
            if found != wanted {
                return Err(format!(
                    "{when}: block {number}, written {version} times, has {found:#018x} at byte \
                     {}, not {wanted:#018x}",
                    8 * place
                ));
            }
        }
        Ok(())
    }
}

/// A block that was never written is zero. Else the numbers of block and version can be read in
/// each word.
fn expected(number: usize, version: u32, place: usize) -> u64 {
    match version {
        0 => 0,
        _ => (number as u64) << 48 | u64::from(version) << 16 | place as u64,
    }
}

/// Numbers that look random and are the same each run (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % end
    }
}

/// A thread and its blocks of the disk: each `THREADS`th.
struct Worker {
    file: File,
    first: usize,
    versions: Vec<u32>,
    random: Random,
    kept: Vec<Block>,
    written: Block,
    requests: u64,
}

impl Worker {
    fn new(file: File, first: usize) -> Self {
        Self {
            file,
            first,
            versions: vec![0; BLOCKS / THREADS],
            random: Random(0x9e37_79b9_7f4a_7c15 ^ first as u64 + 1),
            kept: (0..KEPT).map(|_| Block::new()).collect(),
            written: Block::new(),
            requests: 0,
        }
    }

    fn step(&mut self) -> Result<(), String> {
        let mine = self.random.below(self.versions.len());
        let number = self.first + THREADS * mine;
        let at = (number * BLOCK) as u64;
        if self.random.below(3) == 0 {
            self.versions[mine] += 1;
            self.written.fill(number, self.versions[mine]);
            self.file.write_all_at(self.written.bytes(), at).map_err(|e| failed("write", e))?;
        } else {
            let kept = &mut self.kept[self.random.below(KEPT)];
            self.file.read_exact_at(kept.bytes(), at).map_err(|e| failed("read", e))?;
            (kept.number, kept.version) = (number, self.versions[mine]);
            kept.check("just read")?;
        }
        self.kept[self.random.below(KEPT)].check("read before")?;
        self.requests += 1;
        if self.requests.is_multiple_of(FLUSH_EVERY) {
            self.file.sync_data().map_err(|e| failed("flush", e))?;
        }
        Ok(())
    }

    /// Checks all that is in memory and on the disk.
    fn check_all(&mut self) -> Result<(), String> {
        for kept in &mut self.kept {
            kept.check("kept")?;
        }
        for (mine, &version) in self.versions.iter().enumerate() {
            check_block(&self.file, self.first + THREADS * mine, version)?;
        }
        Ok(())
    }
}

fn failed(what: &str, error: std::io::Error) -> String {
    format!("a {what} failed: {error}")
}

fn check_block(file: &File, number: usize, version: u32) -> Result<(), String> {
    let mut block = Block::new();
    (block.number, block.version) = (number, version);
    let at = (number * BLOCK) as u64;
    file.read_exact_at(block.bytes(), at).map_err(|e| failed("read", e))?;
    block.check("at the end")
}

fn run(device: &Path, directory: &Path) -> Result<(), String> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT).open(device);
    let file = file.map_err(|e| failed("open", e))?;
    let (stops, total) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let longest = Arc::new(AtomicU64::new(0));
    let workers: Vec<_> = (0..THREADS)
        .map(|first| {
            let (stops, total) = (Arc::clone(&stops), Arc::clone(&total));
            let longest = Arc::clone(&longest);
            let mut worker = Worker::new(file.try_clone().expect("descriptors are left"), first);
            thread::spawn(move || {
                while !stops.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    worker.step().inspect_err(|_| stops.store(true, Ordering::Relaxed))?;
                    longest.fetch_max(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
                    total.fetch_add(1, Ordering::Relaxed);
                }
                worker.check_all().map(|()| worker)
            })
        })
        .collect();
    while !stops.load(Ordering::Relaxed) {
        // In this order: whoever sees progress finds how long that took.
        let answered = total.load(Ordering::Relaxed);
        if !directory.join("longest").exists() {
            longest.store(0, Ordering::Relaxed);
        }
        write(directory, "longest", &longest.load(Ordering::Relaxed).to_string());
        write(directory, "progress", &answered.to_string());
        thread::sleep(LOOK);
        stops.fetch_or(directory.join("stop").exists(), Ordering::Relaxed);
    }
    let mut table = vec![0; BLOCKS];
    for worker in workers {
        let worker = worker.join().map_err(|_| "a thread panicked".to_owned())??;
        for (mine, version) in worker.versions.iter().enumerate() {
            table[worker.first + THREADS * mine] = *version;
        }
    }
    let table: Vec<String> = table.iter().map(u32::to_string).collect();
    write(directory, "table", &table.join(" "));
    Ok(())
}

/// Whoever reads the file finds it whole.
fn write(directory: &Path, name: &str, text: &str) {
    let partial = directory.join(format!("{name}.partial"));
    let written = fs::write(&partial, text);
    written.and_then(|()| fs::rename(&partial, directory.join(name))).expect("there is room");
}

fn check(image: &Path, table: &Path) -> Result<(), String> {
    let file = File::open(image).map_err(|e| failed("open", e))?;
    let table = fs::read_to_string(table).map_err(|e| failed("read", e))?;
    let versions: Vec<u32> =
        table.split_whitespace().map(|n| n.parse().expect("a number")).collect();
    assert_eq!(versions.len(), BLOCKS, "it is no table of this program");
    versions
        .iter()
        .enumerate()
        .try_for_each(|(number, &version)| check_block(&file, number, version))
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["run", device, directory] => {
            let directory = Path::new(directory);
            run(Path::new(device), directory).inspect_err(|why| write(directory, "failed", why))
        }
        ["check", image, table] => check(Path::new(image), Path::new(table)),
        _ => Err("usage: verifier run DEVICE DIRECTORY | check IMAGE TABLE".to_owned()),
    };
    if let Err(why) = done {
        eprintln!("{why}");
        exit(1);
    }
}
