//! `peers-disk SOCKET IMAGE QUEUES` serves a disk by rust-vmm's `vhost-user-backend`, to one
//! front-end after the other, until it is ended. It says `listening` when it does.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use peers_std::Disk;
use vhost::vhost_user::Listener;

fn main() -> Result<(), Box<dyn Error>> {
    let [socket, image, queues]: [String; 3] =
        std::env::args().skip(1).collect::<Vec<_>>().try_into().map_err(|_| "three arguments")?;
    let disk = Arc::new(Disk::open(&PathBuf::from(image), queues.parse()?)?);
    let mut listener = Listener::new(socket, false)?;
    println!("listening");
    loop {
        disk.serve(&mut listener).map_err(|error| error.to_string())?;
    }
}
