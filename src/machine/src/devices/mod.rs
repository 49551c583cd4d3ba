//! Devices: disks, and on I/O ports a 16550, the debug port, the two ports that reset a PC, and the
//! built-in workload's port. Nothing here knows of KVM but the line that the serial port
//! interrupts by.

mod console;
pub(crate) mod virtio;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmferry_guest::abi;

use crate::{EventSink, MachineConfig, MachineError, MachineEvent, Recorder, lock};
pub(crate) use console::Output;
use virtio::Disks;

const SERIAL_BASE: u16 = 0x3f8;
const SERIAL_LAST: u16 = SERIAL_BASE + 7;
const SERIAL_IRQ: u32 = 4;
/// Command port of the keyboard controller, and its command to pulse the reset line.
const KEYBOARD_COMMAND: u16 = 0x64;
const PULSE_RESET: u8 = 0xfe;
/// Reset control of PC chipsets, and its bit that resets.
const RESET_CONTROL: u16 = 0xcf9;
const RESET_CPU: u8 = 1 << 2;

/// What a vCPU is to do on account of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Go on.
    None,
    /// Go on after so long.
    Sleep(Duration),
    /// The guest has reset the machine, in words.
    Reset(&'static str),
}

/// The serial port's interrupt: edge triggered, as on an ISA bus.
#[derive(Clone, Debug)]
pub(crate) struct IrqLine(Arc<VmFd>);

impl Trigger for IrqLine {
    type E = kvm_ioctls::Error;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.set_irq_line(SERIAL_IRQ, true)?;
        self.0.set_irq_line(SERIAL_IRQ, false)
    }
}

type SerialPort = Serial<IrqLine, NoEvents, Output>;

/// The registers of the 16550 as they travel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedSerial {
    /// Divisor latch low, high; IER, IIR, LCR, LSR, MCR, MSR, SCR.
    pub(crate) registers: [u8; 9],
    /// Input that the guest has yet to read.
    pub(crate) input: Vec<u8>,
}

/// All devices of a machine.
pub(crate) struct Devices {
    irq: IrqLine,
    serial: Mutex<SerialPort>,
    debug: Mutex<Output>,
    /// Where the built-in workload runs.
    workload: Option<Arc<Recorder>>,
    pub(crate) disks: Arc<Disks>,
    events: EventSink,
}

impl Devices {
    /// Opens the consoles.
    ///
    /// # Errors
    /// [`MachineError::File`].
    pub(crate) fn new(
        config: &MachineConfig,
        vm: Arc<VmFd>,
        workload: Option<Arc<Recorder>>,
        disks: Arc<Disks>,
        events: EventSink,
    ) -> Result<Self, MachineError> {
        let irq = IrqLine(vm);
        Ok(Self {
            serial: Mutex::new(Serial::new(
                irq.clone(),
                Output::open("the serial console", &config.serial)?,
            )),
            irq,
            debug: Mutex::new(Output::open("the debug console", &config.debugcon)?),
            workload,
            disks,
            events,
        })
    }

    /// A read of `port`: one or several units in `data`, which is filled. Ports that do not exist
    /// read as all ones.
    pub(crate) fn port_in(&self, vcpu: u32, port: u16, data: &mut [u8]) {
        match (port, &self.workload) {
            (SERIAL_BASE..=SERIAL_LAST, _) => {
                let mut serial = lock(&self.serial);
                data.fill_with(|| serial.read((port - SERIAL_BASE) as u8));
            }
            (abi::PORT_DEBUG, _) => data.fill(abi::PORT_DEBUG as u8),
            (abi::PORT_COMMAND, Some(recorder)) if data.len() == 4 => {
                data.copy_from_slice(&recorder.take_command(vcpu).to_le_bytes());
            }
            _ => data.fill(0xff),
        }
    }

    /// A write of one or several units to `port`. Ports that do not exist take anything.
    pub(crate) fn port_out(&self, vcpu: u32, port: u16, data: &[u8]) -> Effect {
        match (port, &self.workload) {
            (SERIAL_BASE..=SERIAL_LAST, _) => {
                let mut serial = lock(&self.serial);
                for &byte in data {
                    // An interrupt that KVM does not take is lost, like the output it is about.
                    let _ = serial.write((port - SERIAL_BASE) as u8, byte);
                }
            }
            (abi::PORT_DEBUG, _) => {
                // Never fails.
                let _ = std::io::Write::write(&mut *lock(&self.debug), data);
            }
            (KEYBOARD_COMMAND, _) if data == [PULSE_RESET] => {
                return Effect::Reset("reset by the keyboard controller");
            }
            (RESET_CONTROL, _) if data.first().is_some_and(|b| b & RESET_CPU != 0) => {
                return Effect::Reset("reset by port 0xcf9");
            }
            (_, Some(recorder)) => {
                if let Some(&bytes) = data.first_chunk() {
                    return self.workload_out(recorder, vcpu, port, u32::from_le_bytes(bytes));
                }
            }
            _ => {}
        }
        Effect::None
    }

    fn workload_out(&self, recorder: &Recorder, vcpu: u32, port: u16, value: u32) -> Effect {
        match port {
            abi::PORT_HEARTBEAT => recorder.beat(vcpu, value),
            abi::PORT_DISK => recorder.disk_beat(vcpu, value),
            abi::PORT_SLEEP => {
                let us = value.min(abi::MAX_SLEEP_US);
                return Effect::Sleep(Duration::from_micros(u64::from(us)));
            }
            abi::PORT_VERIFIED => (self.events)(MachineEvent::Verified {
                vcpu,
                result: value,
            }),
            abi::PORT_READY if recorder.ready() => (self.events)(MachineEvent::WorkloadReady),
            _ => {}
        }
        Effect::None
    }

    /// The serial port's state.
    pub(crate) fn save_serial(&self) -> SavedSerial {
        let s = lock(&self.serial).state();
        SavedSerial {
            registers: [
                s.baud_divisor_low,
                s.baud_divisor_high,
                s.interrupt_enable,
                s.interrupt_identification,
                s.line_control,
                s.line_status,
                s.modem_control,
                s.modem_status,
                s.scratch,
            ],
            input: s.in_buffer,
        }
    }

    /// Sets the serial port's state. May pulse its interrupt line: interrupt controllers are to
    /// be restored after it.
    ///
    /// # Errors
    /// In words, where it is no such state.
    pub(crate) fn restore_serial(&self, saved: &SavedSerial) -> Result<(), String> {
        let [low, high, ier, iir, lcr, lsr, mcr, msr, scr] = saved.registers;
        let state = SerialState {
            baud_divisor_low: low,
            baud_divisor_high: high,
            interrupt_enable: ier,
            interrupt_identification: iir,
            line_control: lcr,
            line_status: lsr,
            modem_control: mcr,
            modem_status: msr,
            scratch: scr,
            in_buffer: saved.input.clone(),
        };
        let mut serial = lock(&self.serial);
        let output = std::mem::take(serial.writer_mut());
        *serial = Serial::from_state(&state, self.irq.clone(), NoEvents, output)
            .map_err(|e| format!("the serial port's state does not fit: {e:?}"))?;
        Ok(())
    }

    /// Closes disks and consoles; output is dropped from here on.
    pub(crate) fn close(&self) {
        self.disks.retire();
        *lock(&self.serial).writer_mut() = Output::None;
        *lock(&self.debug) = Output::None;
    }
}
