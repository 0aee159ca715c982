//! Unit tests of `source::frame`.

use bytes::BytesMut;
use proptest::prelude::*;
use waltrail::lsn::Lsn;
use waltrail::source::frame::*;

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>) {
        let _ = Frame::parse(&bytes);
    }
}

#[test]
fn a_keepalive_is_read() {
    let mut bytes = vec![b'k'];
    bytes.extend(0x16_B374_D848u64.to_be_bytes());
    bytes.extend(5u64.to_be_bytes());
    bytes.push(1);
    let processed = "16/B374D848".parse().unwrap();
    assert_eq!(
        Frame::parse(&bytes),
        Ok(Frame::Keepalive {
            processed,
            reply_wanted: true
        })
    );
    bytes.push(0);
    assert_eq!(Frame::parse(&bytes), Err(FrameError::Length(b'k')));
}

#[test]
fn xlogdata_holds_one_message() {
    let mut bytes = vec![b'w'];
    bytes.extend([0; 16]);
    bytes.extend(7i64.to_be_bytes());
    assert_eq!(
        Frame::parse(&bytes),
        Ok(Frame::XLogData {
            sent_at: 7,
            payload: &[]
        })
    );
    assert_eq!(Frame::parse(&bytes[..24]), Err(FrameError::Length(b'w')));
}

#[test]
fn an_unknown_frame_is_refused() {
    assert_eq!(Frame::parse(b"s123"), Err(FrameError::Unknown(b's')));
    assert_eq!(Frame::parse(b""), Err(FrameError::Length(0)));
}

#[test]
fn a_status_update_is_34_bytes_in_a_copydata() {
    let mut out = BytesMut::new();
    let lsn = Lsn::from_u64;
    Status {
        received: lsn(3),
        flushed: lsn(2),
        reply_wanted: true,
    }
    .write(9, &mut out);
    assert_eq!(out.len(), 1 + 4 + 34);
    assert_eq!(&out[..6], b"d\0\0\0\x26r");
    assert_eq!(
        (out[13], out[21], out[29], out[37], out[38]),
        (3, 2, 2, 9, 1)
    );
}
