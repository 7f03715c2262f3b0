pub mod charge;
pub use self::charge::Charge;
pub mod new_charge;
pub use self::new_charge::NewCharge;
