//! A driver that wants its chains back in the order in which it made them available.

use vhost_user_core::memory::Buffers;
use vhost_user_core::ring::Ring;
use vhost_user_core::token::Token;

use super::driver::*;

fn popped(driver: &mut Driver, device: &mut Ring, count: u64) -> Vec<Token> {
    let pieces = |n| [Piece { at: DATA + 64 * n, len: 64, writable: true }; 2];
    for n in 0..count {
        driver.add(&pieces(n)[..1 + (n % 2) as usize], Form::Direct);
    }
    driver.expose();
    device.available().unwrap();
    (0..count).map(|_| device.pop(&mut Buffers::default()).unwrap().unwrap()).collect()
}

#[test]
fn answers_out_of_order_wait_for_their_turn_and_keep_their_lengths() {
    let mut driver = Driver::new(&guest(), 8, false, 5);
    let mut device = driver.start_in_order();
    let tokens = popped(&mut driver, &mut device, 4);
    device.push(tokens[2], 30);
    device.push(tokens[1], 20);
    assert!(!device.publish(), "there is nothing to tell");
    assert_eq!(driver.collect(), []);
    assert_eq!(device.tokens_in_flight(), [tokens[0], tokens[3]]);
    device.push(tokens[0], 10);
    assert!(device.publish());
    let ids: Vec<_> = tokens.iter().map(|token| token.id).collect();
    assert_eq!(driver.collect(), [(ids[0], 10), (ids[1], 20), (ids[2], 30)]);
    device.push(tokens[3], 0);
    device.publish();
    assert_eq!(driver.collect(), [(ids[3], 0)]);
}

#[test]
fn the_ring_steps_back_over_chains_that_are_not_answered() {
    let mut driver = Driver::new(&guest(), 8, false, 0);
    let mut device = driver.start_in_order();
    let tokens = popped(&mut driver, &mut device, 4);
    device.push(tokens[1], 0);
    for token in tokens[2..].iter().rev() {
        assert_eq!(device.last_popped(), Some(*token));
        device.unpop(*token);
    }
    assert_eq!(device.last_popped(), None, "that one is answered, and waits");
    assert_eq!(device.available(), Ok(2));
    for token in &tokens[2..] {
        assert_eq!(device.pop(&mut Buffers::default()), Ok(Some(*token)));
        device.push(*token, 0);
    }
    device.publish();
    assert_eq!(driver.collect(), []);
    device.push(tokens[0], 0);
    device.publish();
    assert_eq!(driver.collect().len(), 4);
}

#[test]
fn a_ring_may_be_full_of_answers_that_wait() {
    for size in [1_u16, 2, 3, 64] {
        let mut driver = Driver::new(&guest(), size, true, 0);
        let mut device = driver.start_in_order();
        for _ in 0..5 {
            let one = [Piece { at: DATA, len: 1, writable: true }];
            (0..size).for_each(|_| {
                driver.add(&one, Form::Direct);
            });
            driver.expose();
            assert_eq!(device.available(), Ok(size));
            let mut tokens: Vec<_> =
                (0..size).map(|_| device.pop(&mut Buffers::default()).unwrap().unwrap()).collect();
            let first = tokens.remove(0);
            tokens.iter().rev().for_each(|token| device.push(*token, 1));
            device.publish();
            assert_eq!((driver.collect().len(), device.available()), (0, Ok(0)));
            device.push(first, 1);
            device.publish();
            assert_eq!(driver.collect().len(), usize::from(size));
        }
    }
}
