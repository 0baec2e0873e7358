//! Requests that are to work, however the driver cuts them into descriptors.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::block::{BlockRequest, Disk, Geometry};

#[test]
fn what_is_written_is_read_back() {
    let mut rig = Rig::new(100);
    let before = rig.content();
    let data = pattern(4096, 1);
    rig.send(&header(OUT, 8, &data), 1).assert_only_status(OK);
    assert_eq!(rig.send(&header(IN, 8, &[]), 4097).data(), data);
    assert_eq!(rig.send(&header(IN, 7, &[]), 513).data(), &before[7 * 512..8 * 512]);
}

#[test]
fn the_last_sector_can_be_read_and_written() {
    let mut rig = Rig::new(100);
    let data = pattern(512, 2);
    rig.send(&header(OUT, 99, &data), 1).assert_only_status(OK);
    assert_eq!(rig.send(&header(IN, 99, &[]), 513).data(), data);
    assert_eq!(rig.content()[99 * 512..], data);
}

#[test]
fn a_request_may_be_cut_anywhere() {
    let mut rig = Rig::new(1000);
    let mut random = Random(3);
    for sector in 0..1000 {
        let data = pattern(512, sector);
        let cuts: Vec<_> = (0..random.below(20)).map(|_| random.below(529)).collect();
        rig.send_cut(&header(OUT, sector, &data), 1, &cuts).assert_only_status(OK);
        let answer = rig.send_cut(&header(IN, sector, &[]), 513, &cuts);
        assert_eq!(answer.data(), data, "cut at {cuts:?}");
    }
}

#[test]
fn each_single_cut_of_a_request_works() {
    let mut rig = Rig::new(1);
    for cut in 0..529 {
        let data = pattern(512, cut as u64);
        rig.send_cut(&header(OUT, 0, &data), 1, &[cut]).assert_only_status(OK);
        assert_eq!(rig.send_cut(&header(IN, 0, &[]), 513, &[cut]).data(), data);
    }
}

#[test]
fn more_descriptors_than_one_call_to_the_system_takes_work() {
    let mut rig = Rig::new(400);
    let data = pattern(200 * 512, 5);
    // 200 buffers: several times the vectors that go in one call.
    let cuts: Vec<_> = (0..200).map(|i| 16 + 512 * i).collect();
    rig.send_cut(&header(OUT, 3, &data), 1, &cuts).assert_only_status(OK);
    assert_eq!(rig.send_cut(&header(IN, 3, &[]), data.len() + 1, &cuts).data(), data);
}

/// A disk that tells the most pieces that one request's data came in.
struct Counting(FileDisk, AtomicUsize);

impl Disk for Counting {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn read(&self, request: &BlockRequest) -> io::Result<()> {
        self.1.fetch_max(request.parts().count(), Ordering::Relaxed);
        self.0.read(request)
    }

    fn write(&self, request: &BlockRequest, durable: bool) -> io::Result<()> {
        self.1.fetch_max(request.parts().count(), Ordering::Relaxed);
        self.0.write(request, durable)
    }

    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }
}

#[test]
fn a_chain_of_1024_descriptors_across_regions_moves_all_data() {
    let disk = Counting(FileDisk::in_memory(2 << 20).unwrap(), AtomicUsize::new(0));
    let device = BlockDevice::new(disk, &BlockOptions::default()).unwrap();
    let mut driver = Driver::new();
    let data = pattern(3 << 19, 11);
    let mut random = Random(12);
    let mut cuts = std::collections::BTreeSet::new();
    // With the ends of header, data and status these make 1024 descriptors.
    while cuts.len() < 1021 {
        cuts.insert(17 + random.below(data.len() - 1));
    }
    let cuts: Vec<_> = cuts.into_iter().collect();
    driver.send_cut(&device, &header(OUT, 1, &data), 1, &cuts).assert_only_status(OK);
    let answer = driver.send_cut(&device, &header(IN, 1, &[]), data.len() + 1, &cuts);
    assert!(answer.data() == data, "the data differs");
    let most = device.disk().1.load(Ordering::Relaxed);
    assert!(most > 1024, "only {most} pieces: no buffer crossed regions");
}

#[test]
fn several_segments_are_all_zeroed_and_nothing_else() {
    let mut rig = Rig::new(100);
    let mut expected = rig.content();
    let mut segments = segment(1, 2, 0);
    segments.extend(segment(50, 0, 0));
    segments.extend(segment(99, 1, UNMAP));
    rig.send(&header(WRITE_ZEROES, 0, &segments), 1).assert_only_status(OK);
    expected[512..3 * 512].fill(0);
    expected[99 * 512..].fill(0);
    assert!(rig.content() == expected, "the image differs");
}

#[test]
fn segments_may_be_cut_anywhere() {
    let mut segments = segment(1, 2, 0);
    segments.extend(segment(10, 3, UNMAP));
    for cut in 1..49 {
        let mut rig = Rig::new(20);
        let mut expected = rig.content();
        let answer = rig.send_cut(&header(WRITE_ZEROES, 0, &segments), 1, &[cut]);
        answer.assert_only_status(OK);
        expected[512..3 * 512].fill(0);
        expected[10 * 512..13 * 512].fill(0);
        assert!(rig.content() == expected, "the image differs for a cut at {cut}");
    }
}
