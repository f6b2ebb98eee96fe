//! Matrix products, with the bounds that `matrixmultiply` leaves to its caller.

/// A matrix in a slice.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    strides: (usize, usize),
}

impl<'a> Matrix<'a> {
    /// `data` as contiguous rows of `columns`.
    pub(super) fn rows(data: &'a [f32], columns: usize) -> Self {
        let rows = data.len().checked_div(columns).unwrap_or(0);
        Matrix { data, rows, columns, strides: (columns, 1) }
    }

    pub(super) fn transposed(self) -> Self {
        Matrix { rows: self.columns, columns: self.rows, strides: (self.strides.1, self.strides.0), ..self }
    }
}

/// `to = alpha · a b + beta · to`, row-major and contiguous; with `beta` 0 the old values are not read.
pub(super) fn product(alpha: f32, a: Matrix, b: Matrix, beta: f32, to: &mut [f32]) {
    assert_eq!(a.columns, b.rows);
    assert_eq!(to.len(), a.rows * b.columns);
    for matrix in [a, b] {
        assert!(matrix.rows * matrix.columns <= matrix.data.len());
    }
    // SAFETY: both constructors make matrices that are dense in their slice, of which the assertions say that they
    // are long enough; `to` has one element for every row and column and is borrowed apart from `a` and `b`.
    unsafe {
        matrixmultiply::sgemm(
            a.rows,
            a.columns,
            b.columns,
            alpha,
            a.data.as_ptr(),
            a.strides.0 as isize,
            a.strides.1 as isize,
            b.data.as_ptr(),
            b.strides.0 as isize,
            b.strides.1 as isize,
            beta,
            to.as_mut_ptr(),
            b.columns as isize,
            1,
        );
    }
}
